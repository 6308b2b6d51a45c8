package chaos_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/chaos"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
	"github.com/lockfabric/lockfabric/primitives"
)

// Histories of primitives over a server, checked against models that do not contain records.

type (
	historyCall struct {
		verb, who string
		n         int
	}
	historyState struct {
		n     int    // permits that are out, the count, the last term
		leads bool   // there is a leader
		value string // the result
	}
)

// history is the calls of the users of one name.
type history struct {
	key   string
	began time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
}

// note makes a call and keeps it with its answer. It does not keep a failed call, which must have had no effect.
func note[T any](h *history, user int, in historyCall, call func() (T, error)) (T, error) {
	called := time.Since(h.began)
	out, err := call()
	returned := time.Since(h.began)
	if err == nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.ops = append(h.ops, porcupine.Operation{ClientId: user, Input: in, Call: int64(called), Output: any(out), Return: int64(returned)})
	}
	return out, err
}

func none(err error) (struct{}, error) { return struct{}{}, err }

const historyCounts = 12

// historyCase says how a user uses a primitive, and whether the model allows a call with its answer.
type historyCase struct {
	name  string
	start historyState
	use   func(ctx context.Context, m *fabric.Manager, h *history, user, n int) error
	step  func(s historyState, in historyCall, out any) (bool, historyState)
}

var historyCases = []historyCase{
	{"semaphore", historyState{}, func(ctx context.Context, m *fabric.Manager, h *history, user, _ int) error {
		n := 1 + rand.IntN(2)
		var p *primitives.Permit
		_, err := note(h, user, historyCall{verb: "acquire", n: n}, func() (_ struct{}, err error) {
			p, err = primitives.NewSemaphore(m, h.key, permitCount).AcquireN(ctx, n)
			return none(err)
		})
		if err != nil {
			return err
		}
		time.Sleep(rand.N(3 * time.Millisecond))
		_, err = note(h, user, historyCall{verb: "release", n: -n}, func() (struct{}, error) { return none(p.Release(ctx)) })
		return err
	}, func(s historyState, in historyCall, _ any) (bool, historyState) {
		s.n += in.n
		return s.n >= 0 && s.n <= permitCount, s
	}},
	{"election", historyState{}, func(ctx context.Context, m *fabric.Manager, h *history, user, _ int) error {
		var l *primitives.Leadership
		_, err := note(h, user, historyCall{verb: "campaign"}, func() (_ uint64, err error) {
			if l, err = primitives.NewElection(m, h.key).Campaign(ctx, nil); err != nil {
				return 0, err
			}
			return l.Term(), nil
		})
		if err != nil {
			return err
		}
		time.Sleep(rand.N(3 * time.Millisecond))
		_, err = note(h, user, historyCall{verb: "resign"}, func() (struct{}, error) { return none(l.Resign(ctx)) })
		return err
	}, func(s historyState, in historyCall, out any) (bool, historyState) {
		if in.verb == "resign" {
			return s.leads, historyState{n: s.n}
		}
		term := int(out.(uint64))
		return !s.leads && term > s.n, historyState{n: term, leads: true}
	}},
	{"latch", historyState{n: historyCounts}, func(ctx context.Context, m *fabric.Manager, h *history, user, n int) (err error) {
		l := primitives.NewLatch(m, h.key, historyCounts)
		switch {
		case user == 0: // it waits while the others count, and when the latch is open
			_, err = note(h, user, historyCall{verb: "wait"}, func() (struct{}, error) { return none(l.Wait(ctx)) })
		case n%2 == 0:
			_, err = note(h, user, historyCall{verb: "read"}, func() (int, error) { return l.Count(ctx) })
		default:
			_, err = note(h, user, historyCall{verb: "count"}, func() (struct{}, error) { return none(l.CountDown(ctx)) })
		}
		return err
	}, func(s historyState, in historyCall, out any) (bool, historyState) {
		switch in.verb {
		case "wait":
			return s.n == 0, s
		case "read":
			return out.(int) == s.n, s
		}
		s.n = max(s.n-1, 0)
		return true, s
	}},
	{"once", historyState{}, func(ctx context.Context, m *fabric.Manager, h *history, user, n int) error {
		me := fmt.Sprint(user, ".", n)
		_, err := note(h, user, historyCall{verb: "do", who: me}, func() (string, error) {
			got, err := primitives.NewOnce(m, h.key).Do(ctx, func(context.Context, uint64) ([]byte, error) {
				time.Sleep(rand.N(3 * time.Millisecond))
				return []byte(me), nil
			})
			return string(got), err
		})
		return err
	}, func(s historyState, in historyCall, out any) (bool, historyState) {
		if s.value == "" && out == in.who {
			s.value = in.who
		}
		return out == s.value, s
	}},
}

// record makes four users call, and reports whether their calls have an order that the model allows.
func (c *historyCase) record(ctx context.Context, t *testing.T, managers []*fabric.Manager, key string, broken bool) bool {
	h := &history{key: key, began: time.Now()}
	var all sync.WaitGroup
	for user, m := range managers {
		all.Go(func() {
			for n := range 8 {
				if err := c.use(ctx, m, h, user, n); err != nil && !broken {
					t.Errorf("%s, user %d: %v", c.name, user, err)
				}
			}
		})
	}
	all.Wait()
	model := porcupine.Model{
		Init: func() any { return c.start },
		Step: func(s, in, out any) (bool, any) { return c.step(s.(historyState), in.(historyCall), out) },
	}
	return porcupine.CheckOperationsTimeout(model, h.ops, checkLimit) == porcupine.Ok
}

// Some of the server's answers get lost. The calls of a primitive's users still have an order that
// its model allows.
func TestHistoriesOfPrimitives(t *testing.T) {
	t.Parallel()
	proxy := faultproxy.New(t, startServer(t).ClientURL())
	managers := newManagers(t, 4, func(int) string { return proxy.URL() }, connOptions())
	lost := proxy.DropRepliesTo(share(25))
	var all sync.WaitGroup
	for _, c := range historyCases {
		all.Go(func() {
			for n, end := 0, time.Now().Add(lasts(0)); n == 0 || time.Now().Before(end); n++ {
				if !c.record(testContext(t), t, managers, fmt.Sprint(c.name, "/", n), false) {
					t.Errorf("%s %d: the history is refused", c.name, n)
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d answers lost", lost.Count())
}

// The same over connections that lose the expected revision of every write: each history is refused.
func TestHistoriesOfPrimitivesWithoutCAS(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	managers := newManagers(t, 4, func(int) string { return srv.ClientURL() }, connOptions(chaos.WithoutCAS()))
	var all sync.WaitGroup
	for _, c := range historyCases {
		all.Go(func() {
			for n := 0; ; n++ {
				ctx, cancel := context.WithTimeout(testContext(t), time.Second) // a forgotten user would wait for ever
				allowed := c.record(ctx, t, managers, fmt.Sprint(c.name, "/", n), true)
				cancel()
				if !allowed {
					return
				}
				if n == 20 {
					t.Errorf("%s: 20 histories without compare-and-set are allowed", c.name)
					return
				}
			}
		})
	}
	all.Wait()
}
