package secrets

import (
	"bytes"
	"crypto/subtle"
	"fmt"
	"log/slog"
)

const redacted = "redacted"

// Value is a credential. Whatever prints, marshals or logs it gets the word "redacted"; only Reveal gives it away. It
// is held by a function because fmt asks no method of a value in an unexported field: it then prints the function's
// address, where through a pointer it would still find the bytes (%s of a *[]byte does).
type Value struct{ reveal func() []byte }

// NewValue keeps a copy of b.
func NewValue(b []byte) Value {
	if len(b) == 0 {
		return Value{}
	}
	c := bytes.Clone(b)
	return Value{func() []byte { return c }}
}

// Reveal returns the credential itself, which the caller must not change; nil when there is none.
func (v Value) Reveal() []byte {
	if v.reveal == nil {
		return nil
	}
	return v.reveal()
}

// IsZero reports whether there is no credential.
func (v Value) IsZero() bool { return v.reveal == nil }

// Equal compares in constant time.
func (v Value) Equal(w Value) bool { return subtle.ConstantTimeCompare(v.Reveal(), w.Reveal()) == 1 }

// String returns "redacted".
func (Value) String() string { return redacted }

// GoString returns "redacted".
func (Value) GoString() string { return redacted }

// Format writes "redacted" for every verb.
func (Value) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalJSON returns "redacted" as a JSON string.
func (Value) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText returns "redacted".
func (Value) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue returns "redacted".
func (Value) LogValue() slog.Value { return slog.StringValue(redacted) }
