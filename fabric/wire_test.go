package fabric_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

// wire is one manager's way to its server, with faults on it. It sees every read
// and write of locks and leases, but not what the watchers deliver.
type wire struct {
	send jskv.Requester

	mu     sync.Mutex
	faults []*fault

	over chan struct{} // closed at the end of the test
	late sync.WaitGroup
}

// fault is what happens to requests of one sort.
type fault struct {
	w     *wire
	match func(*nats.Msg) bool
	left  int // how many more; below 0: no end
	act   action
	hits  int
	hit   chan struct{} // receives one for each hit, as far as somebody listens
}

type action func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error)

// wired returns a manager on a wire, and the wire. The faults end with the test,
// before the manager is closed.
func (s *site) wired(t testing.TB, opts ...fabric.Option) (*fabric.Manager, *wire) {
	t.Helper()
	nc := s.conn(t)
	w := &wire{send: nc.RequestMsgWithContext, over: make(chan struct{})}
	m := newManager(t, nc, slices.Concat(s.options, opts, []fabric.Option{fabric.WithRequester(w.request)})...)
	t.Cleanup(w.heal)
	t.Cleanup(func() {
		close(w.over)
		w.late.Wait()
	})
	return m, w
}

func (w *wire) request(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
	w.mu.Lock()
	for _, f := range w.faults {
		if f.left == 0 || !f.match(msg) {
			continue
		}
		f.left--
		f.hits++
		w.mu.Unlock()
		select {
		case f.hit <- struct{}{}:
		default:
		}
		return f.act(ctx, msg, w.send)
	}
	w.mu.Unlock()
	return w.send(ctx, msg)
}

// fault makes the next n matching requests, all for n < 0, go wrong.
func (w *wire) fault(n int, match func(*nats.Msg) bool, act action) *fault {
	f := &fault{w: w, match: match, left: n, act: act, hit: make(chan struct{}, 1024)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, f)
	return f
}

// heal ends all faults.
func (w *wire) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = nil
}

func (f *fault) end() {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	f.w.faults = slices.DeleteFunc(f.w.faults, func(x *fault) bool { return x == f })
}

func (f *fault) count() int {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	return f.hits
}

// Sorts of requests.

func lockWrite(msg *nats.Msg) bool {
	return strings.HasPrefix(msg.Subject, "$KV.") && strings.Contains(msg.Subject, "-locks")
}

func lockPut(msg *nats.Msg) bool { return lockWrite(msg) && msg.Header.Get("KV-Operation") == "" }

func lockPurge(msg *nats.Msg) bool {
	return lockWrite(msg) && msg.Header.Get("KV-Operation") == "PURGE"
}

func lockRead(msg *nats.Msg) bool {
	return strings.HasPrefix(msg.Subject, "$JS.API.STREAM.MSG.GET.") && strings.Contains(msg.Subject, "-locks")
}

func lockTraffic(msg *nats.Msg) bool { return lockWrite(msg) || lockRead(msg) }

func leaseWrite(msg *nats.Msg) bool {
	return strings.HasPrefix(msg.Subject, "$KV.") && strings.Contains(msg.Subject, "-leases.") && !strings.HasSuffix(msg.Subject, kv.MetaKey)
}

func anything(*nats.Msg) bool { return true }

// What goes wrong with them.

// notSent fails before anything was sent.
func notSent(context.Context, *nats.Msg, jskv.Requester) (*nats.Msg, error) {
	return nil, nats.ErrNoResponders
}

// vanish loses the request on its way, and the client's patience with it.
func vanish(context.Context, *nats.Msg, jskv.Requester) (*nats.Msg, error) {
	return nil, nats.ErrTimeout
}

// deaf has the server do it and loses the reply.
func deaf(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
	_, _ = surely(ctx, msg, send)
	return nil, nats.ErrTimeout
}

// surely sends a request, however long its answer takes and until the stream has a leader: what a
// test has to know.
func surely(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	for {
		reply, err := send(ctx, msg)
		if !errors.Is(err, nats.ErrNoResponders) || !pause.For(ctx, 50*time.Millisecond) {
			return reply, err
		}
	}
}

// twice delivers the request two times; the first reply counts.
func twice(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
	reply, err := send(ctx, msg)
	_, _ = send(ctx, msg)
	return reply, err
}

// busy is the server's answer 10164.
func busy(context.Context, *nats.Msg, jskv.Requester) (*nats.Msg, error) {
	return &nats.Msg{Data: []byte(`{"error":{"code":400,"err_code":10164,"description":"wrong last sequence"},"stream":"x","seq":0}`)}, nil
}

// seen calls fn at the moment at which the request passes, and passes it on.
func seen(fn func(msg *nats.Msg)) action {
	return func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
		fn(msg)
		return send(ctx, msg)
	}
}

// delayed keeps requests back while their senders give up, and delivers them when
// delivered is closed. The replies come out of the channel; "" is a commit, else
// it is the server's reason.
func (w *wire) delayed(deliver <-chan struct{}) (action, <-chan string) {
	replies := make(chan string, 64)
	return func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
		ctx = context.WithoutCancel(ctx)
		w.late.Go(func() {
			select {
			case <-deliver:
			case <-w.over: // the test failed before
				return
			}
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			reply, err := send(ctx, msg)
			switch {
			case err != nil:
				replies <- err.Error()
			case strings.Contains(string(reply.Data), `"error"`):
				replies <- string(reply.Data)
			default:
				replies <- ""
			}
		})
		return nil, nats.ErrTimeout
	}, replies
}

// about limits a sort of requests to one lock.
func about(t testing.TB, key string, match func(*nats.Msg) bool) func(*nats.Msg) bool {
	t.Helper()
	enc, err := kv.EncodeName(key)
	if err != nil {
		t.Fatal(err)
	}
	return func(msg *nats.Msg) bool {
		return match(msg) && (strings.HasSuffix(msg.Subject, "."+enc) || strings.Contains(string(msg.Data), enc))
	}
}
