package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
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
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

// connect opens the fabric on the given server, or on the local one, within --timeout. The caller closes the manager.
func (c *cli) connect(ctx context.Context, s *streams, opts ...fabric.Option) (*fabric.Manager, error) {
	to, err := c.target()
	if err != nil {
		return nil, err
	}
	to = cmp.Or(to, &target{origin: "the local server"})
	c.welcome = &connWatch{log: s.log, to: to, opening: true}
	c.welcome.ctx, c.welcome.end = context.WithCancelCause(context.Background())
	guarded, done := c.welcome.guard(ctx)
	defer done()
	limited, cancel := context.WithTimeout(guarded, c.Timeout)
	defer cancel()
	opts = append(opts, fabric.WithFabric(c.Fabric), fabric.WithLogger(s.log), fabric.WithoutVolunteering(), fabric.WithNATS(c.welcome.options()...))
	// While it waits for a silent server, the client ignores the end of a context. An interrupted command does not wait
	// for it.
	opened := make(chan *fabric.Manager, 1)
	err = callUnlessDone(guarded.Done(), func() error {
		var m *fabric.Manager
		open := func(ctx context.Context, servers string, o ...nats.Option) (err error) {
			m, err = fabric.Connect(ctx, servers, append(opts[:len(opts):len(opts)], fabric.WithNATS(o...))...)
			return err
		}
		var err error
		if to.servers == "" {
			err = c.connectLocal(limited, s, open)
		} else {
			go to.findHTTP(limited, c.welcome.end)
			// One attempt ends after some seconds without an answer.
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

// silent reports whether an attempt to connect ended because no server answered.
func silent(err error) bool {
	return errors.Is(err, fabric.ErrUnavailable) && (errors.Is(err, nats.ErrTimeout) || slow(err))
}

func slow(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// withoutLimit opens the fabric, calls fn with it, and closes it. fn has no time limit.
func (c *cli) withoutLimit(ctx context.Context, s *streams, fn func(ctx context.Context, m *fabric.Manager) error) error {
	// Most of these commands only read, and their user may have no other permissions.
	m, err := c.connect(ctx, s, fabric.WithLazyLease(), fabric.WithSweepInterval(0))
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	guarded, done := c.welcome.guard(ctx)
	defer done()
	return c.welcome.why(guarded, fn(guarded, m))
}

// untilInterrupted is withoutLimit for commands that only a signal ends; the signal is then a success.
func (c *cli) untilInterrupted(ctx context.Context, s *streams, fn func(ctx context.Context, m *fabric.Manager) error) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := c.withoutLimit(ctx, s, fn)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// whileRead is untilInterrupted for commands that print results. It also ends when nobody can read them any more, with
// the exit code that SIGPIPE would cause, but before there is another result.
func (c *cli) whileRead(ctx context.Context, s *streams, fn func(ctx context.Context, m *fabric.Manager) error) error {
	return c.untilInterrupted(ctx, s, func(ctx context.Context, m *fabric.Manager) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		whenUnread(s.out, func() { cancel(&exitError{code: exitSignal + int(syscall.SIGPIPE)}) })
		return interrupted(ctx, cmp.Or(fn(ctx, m), ctx.Err()))
	})
}

// interrupted returns the cause of ctx's end if it caused err.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// errRefused is returned if the server refuses the credentials or a required permission.
var errRefused = errors.New("the server refuses the credentials")

// connWatch checks whether the server accepts a connection. The server reports a request without permission separately,
// and never answers it. If it refuses credentials during a reconnect, the client closes the connection permanently.
// Without these checks, both would look like a slow server.
type connWatch struct {
	log *slog.Logger
	to  *target
	ctx context.Context // ends, with the cause, when it makes no sense to continue
	end context.CancelCauseFunc

	mu      sync.Mutex
	opening bool   // while the fabric is being opened, more permissions are required
	warned  string // the last warning
}

// options returns the client's handlers. Without an error handler, the client would print errors.
func (w *connWatch) options() []nats.Option {
	return []nats.Option{
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { w.heard(err) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // nil if this program closed the connection
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

func (w *connWatch) heard(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log.Debug("connection", "error", w.to.secrets.Hide(err.Error()))
	permission := errors.Is(err, nats.ErrPermissionViolation)
	if permission && !w.needed(err.Error()) || !permission && !refused(err) {
		return
	}
	before := w.warned
	w.warned = w.to.secrets.Hide(err.Error())
	switch {
	case w.warned == before: // it was already reported
	case permission:
		w.log.Warn("the server does not permit what a lock needs", "error", w.warned)
	default:
		w.log.Warn("the server refuses the credentials", "error", w.warned)
	}
	if permission {
		w.end(w.to.refused(err))
	}
}

// waitsRefusal matches the refusal of a permission that only deadlock detection needs.
var waitsRefusal = regexp.MustCompile(`"\$(KV\.[\w-]+-waits\.|JS\.API\.STREAM\.[A-Z.]+\.KV_[\w-]+-waits")`)

// needed reports whether the refused permission is required. The server reports it only as a text. A wrong guess costs
// time, but no lock: without the required permission, the command ends at its time limit. Called with the lock held.
func (w *connWatch) needed(text string) bool {
	if strings.Contains(text, `Subscription to "`) {
		return !strings.Contains(text, `"$JS.`) && !strings.Contains(text, `"lf.`)
	}
	if waitsRefusal.MatchString(text) {
		return false
	}
	subjects := []string{`"$KV.`, `"$JS.API.STREAM.MSG.GET.`, `"$JS.API.CONSUMER.CREATE.`}
	if w.opening {
		subjects = append(subjects, `"$JS.API.INFO"`, `"$JS.API.STREAM.INFO.`, `"$JS.API.STREAM.CREATE.`)
	}
	return slices.ContainsFunc(subjects, func(s string) bool { return strings.Contains(text, s) })
}

// guard returns a context that ends, with the cause, when it makes no sense to continue.
func (w *connWatch) guard(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(w.ctx, func() { cancel(context.Cause(w.ctx)) })
	return ctx, func() {
		unhook()
		cancel(nil)
	}
}

// why returns the reason of a call's error: credentials were refused on a reconnect, or guarded has ended.
func (w *connWatch) why(guarded context.Context, err error) error {
	if guarded.Err() == nil && errors.Is(err, fabric.ErrConnectionClosed) && refused(err) {
		return w.to.refused(err)
	}
	return interrupted(guarded, err)
}

// refused reports whether the server refused the credentials or a permission.
func refused(err error) bool { return exitCode(err) == exitRefused }

// explain adds what to do to an error of connecting, in a text without secrets.
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
		return err // the error already contains advice
	case refused(err):
		return t.refused(err)
	case errors.Is(err, kv.ErrServerTooOld), errors.Is(err, kv.ErrUnsafeConfig):
		return hidden // these errors already say what to do
	case exitCode(err) == exitUnavailable:
		return fmt.Errorf("%w: %s", hidden, t.advice(err, timeout))
	}
	return hidden
}

// unreachable returns why no server could be reached, which the client does not report.
func (t *target) unreachable(err error) error {
	conn, at, derr := t.dial()
	if derr != nil {
		return fmt.Errorf("%w: no server can be reached at %s: %w", fabric.ErrUnavailable, at, derr)
	}
	_ = conn.Close()
	return err
}

// dial opens a connection to the first server, whose address is at.
func (t *target) dial() (conn net.Conn, at string, err error) {
	first, _, _ := strings.Cut(t.servers, ",")
	u, err := url.Parse(first)
	if err != nil {
		return nil, "", err
	}
	conn, err = net.DialTimeout("tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "4222")), time.Second)
	return conn, u.Redacted(), err
}

// findHTTP calls end if the only server is an HTTP server. Otherwise it and the client would wait for each other until
// the time limit, because both expect that the other one begins.
func (t *target) findHTTP(ctx context.Context, end context.CancelCauseFunc) {
	if strings.Contains(t.servers, ",") || strings.HasPrefix(t.servers, "ws") || !pause.For(ctx, time.Second) {
		return
	}
	conn, at, err := t.dial()
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	answer := make([]byte, len("HTTP/"))
	_, err = conn.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
	if err == nil {
		_, err = io.ReadFull(conn, answer)
	}
	if err == nil && string(answer) == "HTTP/" {
		end(fmt.Errorf("%w: %w", fabric.ErrUnavailable, &reworded{nats.ErrNoInfoReceived, "an HTTP server answers at " + at}))
	}
}

// refused returns errRefused with the server's message and what to do.
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
	alert, ok := errors.AsType[*net.OpError](err)
	ended := ok && alert.Op == "remote error" || errors.Is(err, nats.ErrTLS)
	switch {
	case is[x509.UnknownAuthorityError](err) && t.setup.CA != "":
		return fmt.Sprintf("the server's certificate is not signed by those in %s (--tlsca, or \"ca\" of the context)", t.setup.CA)
	case is[x509.UnknownAuthorityError](err):
		return "this host doesn't know who signed the server's certificate: name the certificate of that authority with --tlsca"
	case is[x509.HostnameError](err):
		return fmt.Sprintf("the certificate is for other names: use one of them in %s", t.origin)
	case is[x509.CertificateInvalidError](err):
		return "the server's certificate can't be used: have it replaced, or check the clock of this host"
	case is[tls.RecordHeaderError](err) && t.setup.TLSFirst:
		return "the server doesn't begin with TLS: leave out --tlsfirst (\"tls_first\" of the context)"
	// The server refuses a certificate after the handshake, or its message is lost because the client was writing.
	case ended && t.setup.Cert == "":
		return "the server ended TLS: if it asks for a certificate, give one with --tlscert and --tlskey"
	case ended:
		return fmt.Sprintf("the server may refuse the certificate %s (--tlscert, or \"cert\" of the context)", t.setup.Cert)
	case errors.Is(err, nats.ErrSecureConnWanted):
		return "the server offers no TLS, and nothing was sent to it: check " + t.origin + ", or leave out what asks for TLS"
	case errors.Is(err, nats.ErrNoInfoReceived):
		return fmt.Sprintf("this is no NATS server, or not its port for clients: check %s", t.origin)
	case errors.Is(err, kv.ErrNoJetStream):
		return fmt.Sprintf("check %s, and that the server runs with JetStream", t.origin)
	case errors.Is(err, kv.ErrFull):
		return "free storage of the server, or have the account's limit raised: 'lockfabric doctor' names it"
	case errors.Is(err, kv.ErrLimit):
		return "have the limit raised, of the server or of the account"
	case errors.Is(err, kv.ErrUnavailable):
		return fmt.Sprintf("connected, but JetStream did not answer within --timeout=%v: look whether a majority of its servers runs", timeout)
	case slow(err) && !t.setup.TLSFirst:
		return fmt.Sprintf("no answer within --timeout=%v: check %s; a server that begins with TLS needs --tlsfirst", timeout, t.origin)
	}
	return fmt.Sprintf("check %s, and that the server runs with JetStream", t.origin)
}

func (t *target) hidden(err error) error { return &reworded{err, t.secrets.Hide(err.Error())} }
