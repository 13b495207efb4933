package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
)

// failed turns what went wrong with an upstream into an answer. The texts of Go's
// transport errors quote the upstream's bytes (a malformed status line, a header,
// an HTTP/2 debug string), so none of them is used: only their kind.
func failed(err error, up upstream) *refusal {
	status, what := explain(err)
	return &refusal{status: status, failed: status != http.StatusForbidden, rule: up.rule, reason: "upstream " + up.authority() + " " + what}
}

// explain gives the status and what to say about err after "upstream NAME".
func explain(err error) (int, string) {
	var f *Failure
	if errors.As(err, &f) {
		return nameFailed(f)
	}
	status := http.StatusBadGateway
	if isTimeout(err) {
		status = http.StatusGatewayTimeout
	}
	var shake *handshakeError
	switch {
	case errors.As(err, &shake):
		return status, handshakeFailed(shake.err)
	case status == http.StatusGatewayTimeout:
		return status, "did not answer in time"
	}
	return status, transportFailed(err)
}

func nameFailed(f *Failure) (int, string) {
	text := f.Msg
	if text != "" {
		text = ": " + text
	}
	switch f.Kind {
	case "denied":
		return http.StatusForbidden, "may not be resolved" + text
	case "nxdomain":
		return http.StatusBadGateway, "does not resolve" + text
	case "timeout":
		return http.StatusGatewayTimeout, "was not resolved in time" + text
	case "address":
		return http.StatusBadGateway, "has no address that is allowed" + text
	}
	return http.StatusBadGateway, "could not be resolved" + text
}

func handshakeFailed(err error) string {
	var verify *tls.CertificateVerificationError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &name):
		return "has a certificate for another name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "has a certificate that is expired or not yet valid"
	case errors.As(err, &verify):
		return "has a certificate from an unknown authority or one that is invalid"
	case isTimeout(err):
		return "did not finish the TLS handshake in time"
	}
	return "failed the TLS handshake"
}

func transportFailed(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused the connection"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset the connection"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		return "cannot be reached from here"
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return "was stopped by the packet filter"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "could not be dialled: too many open files"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errTruncated):
		return "closed the connection before it answered"
	case errors.Is(err, errHeadTooLarge):
		return "sent a larger head than is accepted"
	}
	return "gave an answer that is not valid HTTP"
}

func isTimeout(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT) {
		return true
	}
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
