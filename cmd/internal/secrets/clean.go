package secrets

import (
	"bytes"
	"fmt"
	"strings"

	"exitgate/policy"
)

// MaxValue is the longest credential, in bytes. No header that an upstream takes is longer.
const MaxValue = 64 << 10

// problem is why a source gives no value. Neither part ever quotes one.
type problem struct{ what, mend string }

// clean checks what was read from subject and takes one line end off it: editors and `echo` write one, a header holds
// none. Anything else that has no place in a header is refused rather than dropped, since a credential that is not
// what its file says would be hard to find.
func clean(subject string, raw []byte) (Value, *problem) {
	no := func(mend, format string, args ...any) (Value, *problem) {
		return Value{}, &problem{subject + " " + fmt.Sprintf(format, args...), mend}
	}
	const plain = "write the credential alone, on one line (`printf %s ... > FILE`)"
	if len(raw) > MaxValue+2 {
		return no("is it the right one?", "holds more than %d KiB", MaxValue>>10)
	}
	b := bytes.TrimSuffix(raw, []byte("\n"))
	if len(b) < len(raw) {
		b = bytes.TrimSuffix(b, []byte("\r"))
	}
	switch at := bytes.IndexFunc(b, func(r rune) bool { return r < 0x20 || r > 0x7e }); {
	case len(b) == 0:
		return no("put the credential there", "is empty")
	case len(b) > MaxValue:
		return no("is it the right one?", "holds more than %d KiB", MaxValue>>10)
	case bytes.HasPrefix(b, []byte("\xef\xbb\xbf")):
		return no("save it without one", "starts with a byte order mark")
	case at >= 0 && (b[at] == '\n' || b[at] == '\r'):
		return no(plain, "holds a line break at byte %d", at+1)
	case at >= 0 && b[at] < 0x80:
		return no(plain, "holds a control byte at byte %d", at+1)
	case at >= 0:
		return no(plain, "holds something other than ASCII at byte %d", at+1)
	case b[0] == ' ' || b[len(b)-1] == ' ':
		return no(plain, "starts or ends with a space")
	case len(b) > 1 && b[0] == b[len(b)-1] && (b[0] == '"' || b[0] == '\''):
		return no("write the credential alone, without them", "is in quotes")
	}
	return NewValue(b), nil
}

// unfit says why a credential of its kind cannot be sent with a value that is text enough for a header. A gate that
// found this out at the first request would be ready, and refuse all of them.
func unfit(c *policy.Credential, value []byte) *problem {
	before, _, _ := strings.Cut(c.Format, "{}")
	switch {
	case len(value) < policy.MinCredential:
		return &problem{fmt.Sprintf("holds less than %d bytes, too few to be told from other text", policy.MinCredential), "is it the right one?"}
	case c.Kind == policy.KindAnthropic && !bytes.HasPrefix(value, []byte(policy.AnthropicToken)) && !bytes.HasPrefix(value, []byte(policy.AnthropicKey)):
		return &problem{"holds neither an " + policy.AnthropicToken + " nor an " + policy.AnthropicKey + " token", "write the token alone there; another kind of credential wants `kind: header`"}
	case strings.TrimSpace(before) != "" && !strings.HasPrefix(c.Format, "basic:") && bytes.HasPrefix(value, []byte(before)):
		return &problem{fmt.Sprintf("begins with %q, which its format %q adds", before, c.Format), "write the token alone there"}
	}
	return nil
}
