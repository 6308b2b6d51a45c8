package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

// explain says what to do about an error of connecting, in a text without secrets.
func (t *target) explain(err error, timeout time.Duration) error {
	if errors.Is(err, context.DeadlineExceeded) || exitCode(err) == exitInternal {
		err = fmt.Errorf("%w: %w", fabric.ErrUnavailable, err)
	}
	if errors.Is(err, nats.ErrNoServers) {
		err = t.unreachable(err)
	}
	hidden := t.hidden(err)
	switch {
	case errors.Is(err, errRefused):
		return err // it has its advice already
	case exitCode(err) == exitRefused:
		return t.refused(err)
	case errors.Is(err, kv.ErrServerTooOld), errors.Is(err, kv.ErrUnsafeConfig):
		return hidden // they say what to do
	case exitCode(err) == exitUnavailable:
		return fmt.Errorf("%w: %s", hidden, t.advice(err, timeout))
	}
	return hidden
}

// unreachable says why no server could be reached, which the client does not: it
// asks the first again.
func (t *target) unreachable(err error) error {
	first, _, _ := strings.Cut(t.servers, ",")
	u, perr := url.Parse(first)
	if perr != nil || u.Hostname() == "" {
		return err
	}
	conn, derr := net.DialTimeout("tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "4222")), time.Second)
	if derr != nil {
		return fmt.Errorf("%w: no server can be reached at %s: %w", fabric.ErrUnavailable, u.Redacted(), derr)
	}
	_ = conn.Close()
	return err
}

// refused returns errRefused with the server's words, and what to do.
func (t *target) refused(err error) error {
	return fmt.Errorf("%w: %w: %s", errRefused, t.hidden(err), t.refusal(err))
}

func (t *target) refusal(err error) string {
	switch {
	case errors.Is(err, nats.ErrPermissionViolation) && (strings.Contains(err.Error(), ".STREAM.CREATE.") || strings.Contains(err.Error(), `"$JS.API.INFO"`)):
		return "the buckets don't exist yet: have them created once, by any command with credentials that may; see docs/inspecting.md, Permissions"
	case errors.Is(err, nats.ErrPermissionViolation):
		return "give this user the permissions in docs/inspecting.md, Permissions"
	case t.who == "":
		return "no credentials were given: use --context, --creds, --nkey, --user or --token"
	}
	return fmt.Sprintf("check %s, and that %s is the server it is for", t.who, t.origin)
}

func (t *target) advice(err error, timeout time.Duration) string {
	var (
		host    x509.HostnameError
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		alert   *net.OpError
		record  tls.RecordHeaderError
		slow    net.Error
	)
	switch {
	case errors.As(err, &unknown) && t.setup.CA != "":
		return fmt.Sprintf("the server's certificate is not signed by those in %s (--tlsca, or \"ca\" of the context)", t.setup.CA)
	case errors.As(err, &unknown):
		return "this host doesn't know who signed the server's certificate: name the certificate of that authority with --tlsca"
	case errors.As(err, &host):
		return fmt.Sprintf("the certificate is for other names: use one of them in %s", t.origin)
	case errors.As(err, &invalid):
		return "the server's certificate can't be used: have it replaced, or check the clock of this host"
	case errors.As(err, &record) && t.setup.TLSFirst:
		return "the server doesn't begin with TLS: leave out --tlsfirst (\"tls_first\" of the context)"
	// The server's word on our certificate comes after the handshake, or is lost
	// when we were writing by then.
	case (errors.As(err, &alert) && alert.Op == "remote error" || errors.Is(err, nats.ErrTLS)) && t.setup.Cert == "":
		return "the server ended TLS: if it asks for a certificate, give one with --tlscert and --tlskey"
	case errors.As(err, &alert) && alert.Op == "remote error" || errors.Is(err, nats.ErrTLS):
		return fmt.Sprintf("the server may refuse the certificate %s (--tlscert, or \"cert\" of the context)", t.setup.Cert)
	case errors.Is(err, nats.ErrSecureConnWanted):
		return "the server offers no TLS, and nothing was sent to it: check " + t.origin + ", or leave out what asks for TLS"
	case errors.Is(err, kv.ErrNoJetStream):
		return fmt.Sprintf("check %s, and that the server runs with JetStream", t.origin)
	case errors.Is(err, kv.ErrFull):
		return "free storage of the server, or have the account's limit raised: 'lockfabric doctor' names it"
	case errors.Is(err, kv.ErrLimit):
		return "have the limit raised, of the server or of the account"
	case errors.Is(err, kv.ErrUnavailable):
		return fmt.Sprintf("connected, but JetStream did not answer within --timeout=%v: look whether a majority of its servers runs", timeout)
	case errors.As(err, &slow) && slow.Timeout() && !t.setup.TLSFirst:
		return fmt.Sprintf("no answer within --timeout=%v: check %s; a server that begins with TLS needs --tlsfirst", timeout, t.origin)
	}
	return fmt.Sprintf("check %s, and that the server runs with JetStream", t.origin)
}

func (t *target) hidden(err error) error { return &reworded{err, t.secrets.Hide(err.Error())} }
