package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Histories of a semaphore, a latch, a result and an election, checked by models that don't use records. The
// same histories over a store that compares no revisions have to be refused.

// historyCall is one call of a history, historyState the state of a model.
type (
	historyCall struct {
		verb, who string
		n         int
	}
	historyState struct {
		n     int    // permits that are out, the count, the last term
		leads bool   // somebody does
		value string // the result
	}
	historyAnswer struct {
		n     int
		value string
	}
)

// historyModel says what a call may return.
func historyModel(start historyState, step func(s historyState, in historyCall, out historyAnswer) (bool, historyState)) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return start },
		Step: func(s, in, out any) (bool, any) {
			ok, next := step(s.(historyState), in.(historyCall), out.(historyAnswer))
			return ok, next
		},
		DescribeOperation: func(in, out any) string { return fmt.Sprint(in, out) },
	}
}

// historyUser is one process; it notes its calls.
type historyUser struct {
	*Engine
	id    int
	lease string
	next  uint64
	h     *historyNotes
}

type historyNotes struct {
	clock atomic.Int64
	mu    sync.Mutex
	ops   []porcupine.Operation
}

func (u *historyUser) note(in historyCall, call func() (historyAnswer, error)) error {
	began := u.h.clock.Add(1)
	out, err := call()
	ended := u.h.clock.Add(1)
	if err != nil {
		return err
	}
	u.h.mu.Lock()
	defer u.h.mu.Unlock()
	u.h.ops = append(u.h.ops, porcupine.Operation{ClientId: u.id, Input: in, Call: began, Output: out, Return: ended})
	return nil
}

func (u *historyUser) do(ctx context.Context, op record.Op) (Outcome, error) {
	u.next++
	op.ID, op.Lease, op.TTL = record.ID(u.lease, u.next), u.lease, 30*time.Second
	out, err := Do(ctx, u.Engine, "k", op, Options{})
	if out.Entry == nil {
		out.Entry = new(record.Entry)
	}
	return out, err
}

func dawdle(rng *rand.Rand) { time.Sleep(time.Duration(rng.IntN(5000)) * time.Microsecond) }

// historyStore takes a moment for a write, and compares no revisions if it is loose.
type historyStore struct {
	*bucket
	loose bool
}

func (s historyStore) Update(ctx context.Context, key string, value []byte, rev uint64, ttl time.Duration) (uint64, error) {
	return s.bucket.Update(ctx, key, value, s.expected(key, rev), ttl)
}

func (s historyStore) Purge(ctx context.Context, key string, rev uint64, markerTTL time.Duration) (uint64, error) {
	return s.bucket.Purge(ctx, key, s.expected(key, rev), markerTTL)
}

func (s historyStore) expected(key string, rev uint64) uint64 {
	time.Sleep(time.Millisecond)
	if s.loose {
		return s.peek(key).Revision
	}
	return rev
}

const historyPermits, historyCounts = 3, 30

func semaphoreHistory(ctx context.Context, u *historyUser, rng *rand.Rand) error {
	n := 1 + rng.IntN(2)
	var id string
	if err := u.note(historyCall{verb: "acquire", n: n}, func() (historyAnswer, error) {
		out, err := u.do(ctx, record.Op{Kind: record.KindSemaphore, Verb: record.OpAcquire, N: n, Limit: historyPermits})
		id = out.Entry.ID
		return historyAnswer{}, err
	}); err != nil {
		return err
	}
	dawdle(rng)
	return u.note(historyCall{verb: "release", n: n}, func() (historyAnswer, error) {
		_, err := Do(ctx, u.Engine, "k", record.Op{Verb: record.OpRelease, ID: id, Lease: u.lease}, Options{})
		return historyAnswer{}, err
	})
}

func electionHistory(ctx context.Context, u *historyUser, rng *rand.Rand) error {
	var hold record.Entry
	if err := u.note(historyCall{verb: "campaign"}, func() (historyAnswer, error) {
		op := lockX
		op.Value = record.Value{Set: true, Data: u.lease}
		out, err := u.do(ctx, op)
		hold = *out.Entry
		return historyAnswer{n: int(hold.Token)}, err
	}); err != nil {
		return err
	}
	dawdle(rng)
	return u.note(historyCall{verb: "resign"}, func() (historyAnswer, error) {
		_, err := Do(ctx, u.Engine, "k", record.Op{Verb: record.OpRelease, ID: hold.ID, Lease: u.lease}, Options{})
		return historyAnswer{}, err
	})
}

func latchHistory(ctx context.Context, u *historyUser, rng *rand.Rand) error {
	if rng.IntN(2) == 0 {
		return u.note(historyCall{verb: "read"}, func() (historyAnswer, error) {
			rec, _, err := u.Read(ctx, "k")
			if rec == nil {
				return historyAnswer{n: historyCounts}, err
			}
			return historyAnswer{n: rec.Facts().Count}, err
		})
	}
	return u.note(historyCall{verb: "count"}, func() (historyAnswer, error) {
		for {
			rec, rev, err := u.Read(ctx, "k")
			life := rev
			if rec != nil {
				life = rec.Life
			}
			if err == nil {
				_, err = u.do(ctx, record.Op{Kind: record.KindLatch, Verb: record.OpCount, N: 1, Limit: historyCounts, Life: life, Base: rev})
			}
			if !refusedAs(err, record.OtherLife) {
				return historyAnswer{}, err
			}
		}
	})
}

func onceHistory(ctx context.Context, u *historyUser, rng *rand.Rand) error {
	me := fmt.Sprint(u.lease, " ", u.next)
	return u.note(historyCall{verb: "do", who: me}, func() (historyAnswer, error) {
		for {
			rec, rev, err := u.Read(ctx, "k")
			if err != nil {
				return historyAnswer{}, err
			}
			life := rev
			if rec != nil {
				if life = rec.Life; rec.Facts().By != "" {
					return historyAnswer{value: rec.Facts().Value.Data}, nil
				}
			}
			out, err := u.do(ctx, record.Op{Kind: record.KindOnce, Verb: record.OpAcquire, Life: life})
			if refusedAs(err, record.OtherLife) || refusedAs(err, record.Finished) {
				continue
			}
			if err == nil {
				dawdle(rng)
				_, err = u.do(ctx, ofHold(record.Op{Kind: record.KindOnce, Verb: record.OpFinish, Value: record.Value{Set: true, Data: me}, Life: life}, *out.Entry))
			}
			return historyAnswer{value: me}, err
		}
	})
}

func refusedAs(err error, v record.Verdict) bool {
	var refused *RefusedError
	return errors.As(err, &refused) && refused.Verdict == v
}

func TestHistoriesAreLinearizable(t *testing.T) {
	for name, c := range map[string]struct {
		use   func(ctx context.Context, u *historyUser, rng *rand.Rand) error
		model porcupine.Model
	}{
		"semaphore": {semaphoreHistory, historyModel(historyState{}, func(s historyState, in historyCall, _ historyAnswer) (bool, historyState) {
			if in.verb == "release" {
				in.n = -in.n
			}
			s.n += in.n
			return s.n >= 0 && s.n <= historyPermits, s
		})},
		"election": {electionHistory, historyModel(historyState{}, func(s historyState, in historyCall, out historyAnswer) (bool, historyState) {
			if in.verb == "resign" {
				return s.leads, historyState{n: s.n}
			}
			return !s.leads && out.n > s.n, historyState{n: out.n, leads: true}
		})},
		"latch": {latchHistory, historyModel(historyState{n: historyCounts}, func(s historyState, in historyCall, out historyAnswer) (bool, historyState) {
			if in.verb == "read" {
				return out.n == s.n, s
			}
			return true, historyState{n: max(s.n-1, 0)}
		})},
		"once": {onceHistory, historyModel(historyState{}, func(s historyState, in historyCall, out historyAnswer) (bool, historyState) {
			if s.value == "" && out.value == in.who {
				s.value = out.value
			}
			return out.value == s.value, s
		})},
	} {
		for _, loose := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, revisions compared: %t", name, !loose), func(t *testing.T) {
				refused := false
				for seed := uint64(1); seed <= 20 && !refused; seed++ {
					h := recordHistory(t, seed, loose, c.use)
					refused = !porcupine.CheckOperations(c.model, h)
				}
				if refused != loose {
					t.Errorf("refused: %t", refused)
				}
			})
		}
	}
}

// recordHistory makes four processes use a key while answers and requests get lost.
func recordHistory(t *testing.T, seed uint64, loose bool, use func(ctx context.Context, u *historyUser, rng *rand.Rand) error) []porcupine.Operation {
	var h historyNotes
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t)
		faults := rand.New(rand.NewPCG(seed, 0))
		b.fault = func(int) fault { // called with the bucket's mutex held
			switch faults.IntN(20) {
			case 0:
				return loseReply
			case 1:
				return lose
			case 2:
				return busy
			}
			return pass
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var wg sync.WaitGroup
		var engines []*Engine
		for i := range 4 {
			e := New(Config{Store: historyStore{b, loose}, Watcher: b, Observer: &observer{}})
			engines = append(engines, e)
			u := &historyUser{Engine: e, id: i, lease: string(rune('A' + i)), h: &h}
			rng := rand.New(rand.NewPCG(seed, uint64(i+1)))
			wg.Go(func() {
				for range 6 {
					if err := use(ctx, u, rng); err != nil && !loose {
						t.Errorf("%s: %v", u.lease, err)
					}
				}
			})
		}
		wg.Wait()
		for _, e := range engines {
			e.Close()
		}
	})
	return h.ops
}
