package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

// connect opens the fabric on the server that was named, or on the local one.
// It is bounded by --timeout. The caller closes the manager.
func (c *cli) connect(ctx context.Context, s *streams, opts ...fabric.Option) (*fabric.Manager, error) {
	to, err := c.target()
	if err != nil {
		return nil, err
	}
	to = cmp.Or(to, &target{origin: "the local server"})
	c.welcome = &welcome{log: s.log, to: to, opening: true}
	c.welcome.ctx, c.welcome.end = context.WithCancelCause(context.Background())
	guarded, done := c.welcome.guard(ctx)
	defer done()
	limited, cancel := context.WithTimeout(guarded, c.Timeout)
	defer cancel()
	opts = append(opts, fabric.WithFabric(c.Fabric), fabric.WithLogger(s.log), fabric.WithoutVolunteering(), fabric.WithNATS(c.welcome.options()...))
	// The client does not stop to wait for a silent server when a context ends, and
	// whoever has interrupted us does not wait for the client.
	opened := make(chan *fabric.Manager, 1)
	err = unless(guarded.Done(), func() error {
		var m *fabric.Manager
		open := func(ctx context.Context, servers string, o ...nats.Option) (err error) {
			m, err = fabric.Connect(ctx, servers, append(opts[:len(opts):len(opts)], fabric.WithNATS(o...))...)
			return err
		}
		var err error
		if to.servers == "" {
			err = c.connectLocal(limited, s, open)
		} else {
			// One attempt ends after some seconds of silence.
			for err = open(limited, to.servers, to.options...); silent(err) && limited.Err() == nil; {
				err = open(limited, to.servers, to.options...)
			}
		}
		opened <- m
		return err
	})
	switch {
	case err == nil:
		c.welcome.mu.Lock()
		c.welcome.opening = false
		c.welcome.mu.Unlock()
		return <-opened, nil
	case ctx.Err() != nil:
		return nil, interrupted(ctx, err)
	case to.servers == "":
		return nil, interrupted(guarded, err)
	}
	return nil, to.explain(interrupted(guarded, err), c.Timeout)
}

// silent reports whether an attempt to connect ended because nobody said anything.
func silent(err error) bool {
	var slow net.Error
	return errors.Is(err, fabric.ErrUnavailable) && (errors.Is(err, nats.ErrTimeout) || errors.As(err, &slow) && slow.Timeout())
}

// withoutLimit opens the fabric, calls fn with it and closes it; fn takes as long as it takes.
func (c *cli) withoutLimit(ctx context.Context, s *streams, fn func(ctx context.Context, m *fabric.Manager) error) error {
	// Most of these only look, and their user may not be allowed more.
	m, err := c.connect(ctx, s, fabric.WithLazyLease(), fabric.WithSweepInterval(0))
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	guarded, done := c.welcome.guard(ctx)
	defer done()
	return c.welcome.why(guarded, fn(guarded, m))
}

// untilInterrupted is withoutLimit for what ends by a signal only, which is a success therefore.
func (c *cli) untilInterrupted(ctx context.Context, s *streams, fn func(ctx context.Context, m *fabric.Manager) error) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := c.withoutLimit(ctx, s, fn)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// interrupted gives an error that came of the end of ctx the reason of that end.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// errRefused says that the server lets us in no more, or not do what is needed.
var errRefused = errors.New("the server refuses the credentials")

// welcome watches whether the server lets a connection do its work. A request that isn't permitted is never answered,
// and the refusal comes beside it; and when credentials are refused while the client reconnects, it closes the
// connection for good. Without this both would look like a server that is slow.
type welcome struct {
	log *slog.Logger
	to  *target

	ctx context.Context // ends with the cause when there is no use in going on
	end context.CancelCauseFunc

	mu      sync.Mutex
	opening bool   // else less is needed
	warned  string // last warning
}

// options are what the client has to tell. Without an error handler it would print.
func (w *welcome) options() []nats.Option {
	return []nats.Option{
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { w.heard(err) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // one that we closed has none
				w.log.Warn("the connection is lost, trying to connect again", "error", w.to.secrets.Hide(err.Error()))
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			w.log.Info("connected again")
			w.mu.Lock()
			defer w.mu.Unlock()
			w.warned = ""
		}),
	}
}

func (w *welcome) heard(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log.Debug("connection", "error", w.to.secrets.Hide(err.Error()))
	switch {
	case errors.Is(err, nats.ErrPermissionViolation):
		if w.needed(err.Error()) {
			if w.news(err) {
				w.log.Warn("the server does not permit what a lock needs", "error", w.warned)
			}
			w.end(w.to.refused(err))
		}
	case refused(err):
		if w.news(err) {
			w.log.Warn("the server refuses the credentials", "error", w.warned)
		}
	}
}

// news notes an error's text, without secrets, as told, and whether it was not yet. Lock held.
func (w *welcome) news(err error) bool {
	before := w.warned
	w.warned = w.to.secrets.Hide(err.Error())
	return w.warned != before
}

// ofWaits matches a refusal of what only the detection of deadlocks needs.
var ofWaits = regexp.MustCompile(`"\$(KV\.[\w-]+-waits\.|JS\.API\.STREAM\.[A-Z.]+\.KV_[\w-]+-waits")`)

// needed reports whether nothing goes without what was refused. The server says it in a text only. A wrong guess
// costs time, and no lock: what isn't taken for needed ends with the time that there is to wait. Lock held.
func (w *welcome) needed(text string) bool {
	if strings.Contains(text, `Subscription to "`) {
		return !strings.Contains(text, `"$JS.EVENT.`) && !strings.Contains(text, `"lf.`)
	}
	if ofWaits.MatchString(text) {
		return false
	}
	subjects := []string{`"$KV.`, `"$JS.API.STREAM.MSG.GET.`, `"$JS.API.CONSUMER.CREATE.`}
	if w.opening {
		subjects = append(subjects, `"$JS.API.INFO"`, `"$JS.API.STREAM.INFO.`, `"$JS.API.STREAM.CREATE.`)
	}
	return slices.ContainsFunc(subjects, func(s string) bool { return strings.Contains(text, s) })
}

// guard returns a context that ends, with the cause, when there is no use in going on.
func (w *welcome) guard(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(w.ctx, func() { cancel(context.Cause(w.ctx)) })
	return ctx, func() {
		unhook()
		cancel(nil)
	}
}

// why gives the error of a call its reason: the connection was closed for good
// because the credentials are refused, or guarded has ended.
func (w *welcome) why(guarded context.Context, err error) error {
	if guarded.Err() == nil && errors.Is(err, fabric.ErrConnectionClosed) && refused(err) {
		return w.to.refused(err)
	}
	return interrupted(guarded, err)
}

// refused reports whether an error is the server's word on who we are.
func refused(err error) bool { return exitCode(err) == exitRefused }

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

// unreachable says why no server could be reached, which the client does not: it asks the first again.
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
	// The server's word on our certificate comes after the handshake, or is lost when we were writing by then.
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
