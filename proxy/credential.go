package proxy

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"exitgate/policy"
	"exitgate/proxy/internal/scrub"
)

// oauthBeta is what the Anthropic API wants in anthropic-beta beside an OAuth
// token, and refuses to work without.
const oauthBeta = "oauth-2025-04-20"

// credential is a secret as it goes upstream: one field, and for an OAuth token
// one word in a list.
type credential struct {
	name   string
	header string // canonical; the one field it is sent in
	value  string
	line   []string // value, as a header map holds it; never changed
	beta   bool     // oauthBeta is merged into anthropic-beta
	broken string   // not "": there is no value, and why
}

// String keeps a credential out of anything printed.
func (*credential) String() string { return redacted }

// GoString keeps a credential out of anything printed.
func (*credential) GoString() string { return redacted }

// render turns a secret into the field it is sent in. It never fails: what
// cannot be sent is a broken credential, which refuses its routes.
func render(c *policy.Credential, s Secret) *credential {
	out := &credential{name: c.Name, header: http.CanonicalHeaderKey(c.Header), broken: s.Broken}
	if out.broken != "" {
		return out
	}
	if err := sendable(s.Value); err != nil {
		out.broken = err.Error()
		return out
	}
	value := string(s.Value)
	if c.Kind == policy.KindAnthropic {
		out.anthropic(value)
	} else {
		out.value = format(c.Format, value)
	}
	out.line = []string{out.value}
	return out
}

// anthropic chooses the field by the token's kind. One of neither kind is
// refused rather than guessed at: sent in the wrong field it would only come
// back as a 401 that names nothing.
func (c *credential) anthropic(value string) {
	switch {
	case strings.HasPrefix(value, policy.AnthropicToken):
		c.header, c.value, c.beta = "Authorization", "Bearer "+value, true
	case strings.HasPrefix(value, policy.AnthropicKey):
		c.header, c.value = "X-Api-Key", value
	default:
		c.broken = "it is neither an " + policy.AnthropicToken + " nor an " + policy.AnthropicKey + " token; use kind: header for another"
	}
}

// format puts value into a credential's format: "basic:USER", or a text with {}.
func format(form, value string) string {
	if user, ok := strings.CutPrefix(form, "basic:"); ok {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+value))
	}
	return strings.Replace(form, "{}", value, 1)
}

// What is sent must be long enough to be found again.
const _ = uint(policy.MinCredential - scrub.MinLength)

var (
	errEmptySecret   = errors.New("it is empty")
	errShortSecret   = fmt.Errorf("it has less than %d bytes, too few to be told from other text", policy.MinCredential)
	errSecretControl = errors.New("it holds a control character, a space at an end or a byte that is not ASCII")
)

// sendable refuses what would split or spoil a field line (RFC 9110 5.5), and what
// could not be scrubbed from an answer.
func sendable(value []byte) error {
	if len(value) == 0 {
		return errEmptySecret
	}
	if len(value) < policy.MinCredential {
		return errShortSecret
	}
	if len(bytes.TrimSpace(value)) != len(value) {
		return errSecretControl
	}
	for _, b := range value {
		if b < ' ' || b > '~' {
			return errSecretControl
		}
	}
	return nil
}

// needles are the forms of a rendered credential that an encoding of the bare
// secret does not already cover.
func (c *credential) needles() [][]byte {
	if c.broken != "" {
		return nil
	}
	if blob, ok := strings.CutPrefix(c.value, "Basic "); ok {
		return [][]byte{[]byte(blob)}
	}
	return nil
}

// apply sets the credential's field and nothing else; every other credential has
// been removed before.
func (c *credential) apply(h http.Header) {
	h[c.header] = c.line
	if c.beta {
		mergeList(h, "Anthropic-Beta", oauthBeta)
	}
}
