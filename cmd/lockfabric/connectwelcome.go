package main

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
)

// errRefused says that the server lets us in no more, or not do what is needed.
var errRefused = errors.New("the server refuses the credentials")

// welcome watches whether the server lets a connection do its work. A request that
// isn't permitted is never answered, and the refusal comes beside it; and when
// credentials are refused while the client reconnects, it closes the connection for
// good. Without this both would look like a server that is slow.
type welcome struct {
	log *slog.Logger
	to  *target

	ctx context.Context // ends with the cause when there is no use in going on
	end context.CancelCauseFunc

	mu      sync.Mutex
	opening bool
	warned  string // last warning
}

func newWelcome(log *slog.Logger, to *target) *welcome {
	w := &welcome{log: log, to: to, opening: true}
	w.ctx, w.end = context.WithCancelCause(context.Background())
	return w
}

// options are what the client has to tell. Without an error handler it would print.
func (w *welcome) options() []nats.Option {
	return []nats.Option{
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { w.heard(err) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { w.disconnected(err) }),
		nats.ReconnectHandler(func(*nats.Conn) { w.reconnected() }),
	}
}

// opened says that the fabric was opened; less is needed from now on.
func (w *welcome) opened() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.opening = false
}

func (w *welcome) heard(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log.Debug("connection", "error", w.to.secrets.Hide(err.Error()))
	switch {
	case errors.Is(err, nats.ErrPermissionViolation):
		if w.needed(err.Error()) {
			if text, news := w.news(err); news {
				w.log.Warn("the server does not permit what a lock needs", "error", text)
			}
			w.end(w.to.refused(err))
		}
	case refused(err):
		if text, news := w.news(err); news {
			w.log.Warn("the server refuses the credentials", "error", text)
		}
	}
}

// disconnected tells of a connection that was lost. One that we closed has no error.
func (w *welcome) disconnected(err error) {
	if err != nil {
		w.log.Warn("the connection is lost, trying to connect again", "error", w.to.secrets.Hide(err.Error()))
	}
}

func (w *welcome) reconnected() {
	w.log.Info("connected again")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.warned = ""
}

// news returns an error's text without secrets, and whether it was not told yet.
// Lock held.
func (w *welcome) news(err error) (text string, news bool) {
	text = w.to.secrets.Hide(err.Error())
	news = text != w.warned
	w.warned = text
	return text, news
}

// ofWaits matches a refusal of what only the detection of deadlocks needs.
var ofWaits = regexp.MustCompile(`"\$(KV\.[\w-]+-waits\.|JS\.API\.STREAM\.[A-Z.]+\.KV_[\w-]+-waits")`)

// needed reports whether nothing goes without what was refused. The server says it
// in a text only. A wrong guess costs time, and no lock: what isn't taken for
// needed ends with the time that there is to wait. Lock held.
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
	for _, s := range subjects {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
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
