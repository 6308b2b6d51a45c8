package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
)

// addOne is an update of a counter.
func addOne(old []byte) ([]byte, error) {
	n, err := 0, error(nil)
	if len(old) > 0 {
		n, err = strconv.Atoi(string(old))
	}
	return []byte(strconv.Itoa(n + 1)), err
}

func userWrite(b jetstream.KeyValue) func(*nats.Msg) bool {
	return func(msg *nats.Msg) bool { return strings.HasPrefix(msg.Subject, "$KV."+b.Bucket()+".") }
}

func userRead(b jetstream.KeyValue) func(*nats.Msg) bool {
	return func(msg *nats.Msg) bool { return msg.Subject == "$JS.API.STREAM.MSG.GET.KV_"+b.Bucket() }
}

func expectValue(t *testing.T, b jetstream.KeyValue, key, want string) {
	t.Helper()
	if e, err := b.Get(waitContext(t), key); err != nil || string(e.Value()) != want {
		t.Errorf("%s is %v, %v, want %q", key, e, err, want)
	}
}

// conflicting is the server's answer 10071.
func conflicting(rev uint64) action {
	return func(context.Context, *nats.Msg, jskv.Requester) (*nats.Msg, error) {
		return &nats.Msg{Data: fmt.Appendf(nil, `{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: %d"},"stream":"x","seq":0}`, rev)}, nil
	}
}

func closedConn(context.Context, *nats.Msg, jskv.Requester) (*nats.Msg, error) {
	return nil, nats.ErrConnectionClosed
}

// committed writes and answers something else.
func committed(answer action) action {
	return func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
		_, _ = surely(ctx, msg, send)
		return answer(ctx, msg, send)
	}
}

func TestUpdate(t *testing.T) {
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		m, w := s.wired(t)
		b, ctx := userBucket(t, s), waitContext(t)
		reads, writes := w.fault(-1, userRead(b), goesThrough), w.fault(-1, userWrite(b), goesThrough)
		for i := range 12 {
			rev, err := m.Update(ctx, b.Bucket(), "n", addOne)
			if err != nil || rev != uint64(i+1) { //nolint:gosec // a small number
				t.Errorf("update %d: %d, %v", i, rev, err)
			}
		}
		expectValue(t, b, "n", "12")
		// On three servers a write can be put off, or find a new stream's leader not ready.
		late := m.Stats().Timeouts > 0 // and then asked for again
		if s.cluster == nil && !late && (reads.count() != 12 || writes.count() != 12) {
			t.Errorf("%d reads, %d writes", reads.count(), writes.count())
		}
		w.heal()
		if rev, err := m.Update(ctx, b.Bucket(), "n", func([]byte) ([]byte, error) { return nil, nil }); err != nil || rev != 12 {
			t.Errorf("no change: %d, %v", rev, err)
		}
		own := errors.New("fn's")
		if _, err := m.Update(ctx, b.Bucket(), "n", func([]byte) ([]byte, error) { return nil, own }); err != own { //nolint:errorlint // that very one
			t.Errorf("fn's error: %v", err)
		}
		if _, err := b.PutString(ctx, "empty", ""); err != nil {
			t.Fatal(err)
		}
		for key, is := range map[string]bool{"empty": true, "none": false} {
			if _, err := m.Update(ctx, b.Bucket(), key, func(old []byte) ([]byte, error) {
				if (old != nil) != is {
					t.Errorf("%s: %v", key, old)
				}
				return old, nil
			}); err != nil {
				t.Error(err)
			}
		}
		if err := b.Delete(ctx, "n"); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Update(ctx, b.Bucket(), "n", addOne); err != nil {
			t.Error(err)
		}
		expectValue(t, b, "n", "1")
		if st := m.Stats(); st.UpdateTries != 14 && s.cluster == nil && st.Timeouts == 0 || st.Updates != 14 || st.UpdateFallbacks != 0 {
			t.Errorf("%d tries, %d updates, %d fallbacks", st.UpdateTries, st.Updates, st.UpdateFallbacks)
		}
	})
}

func TestUpdateRefuses(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		m, b, js := s.manager(t), userBucket(t, s), s.jetStream(t)
		ageing := fmt.Sprintf("users-%d", s.numbers.Add(1))
		if _, err := js.CreateKeyValue(waitContext(t), jetstream.KeyValueConfig{Bucket: ageing, TTL: time.Hour}); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = js.DeleteKeyValue(waitContext(t), ageing) }()
		update := func(bucket, key string, opts ...fabric.OptimisticOption) error {
			return second(m.Update(waitContext(t), bucket, key, addOne, opts...))
		}
		for what, err := range map[string]error{
			"no bucket":    update("there-is-none", "k"),
			"max age":      update(ageing, "k"),
			"our own":      update(fabric.DefaultFabric+"-locks", "k"),
			"our waits":    update(fabric.DefaultFabric+"-waits", "k"),
			"no name":      update("a.b", "k"),
			"a wildcard":   update(b.Bucket(), "a.*"),
			"an empty key": update(b.Bucket(), ""),
			"no tries":     update(b.Bucket(), "k", fabric.WithTries(0)),
			"too large":    second(m.Update(waitContext(t), b.Bucket(), "k", func([]byte) ([]byte, error) { return make([]byte, 2<<20), nil })),
		} {
			if !errors.Is(err, fabric.ErrInvalidOption) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := update(b.Bucket(), strings.Repeat("k", 600)); !errors.Is(err, fabric.ErrInvalidName) {
			t.Errorf("a long key: %v", err)
		}
		if err := s.jetStream(t).DeleteKeyValue(waitContext(t), b.Bucket()); err != nil {
			t.Fatal(err)
		}
		if err := update(b.Bucket(), "k"); !errors.Is(err, fabric.ErrInvalidOption) {
			t.Errorf("a bucket that was deleted: %v", err)
		}
		_ = m.Close()
		if err := update(b.Bucket(), "k"); !errors.Is(err, fabric.ErrClosed) {
			t.Errorf("a closed manager: %v", err)
		}
	})
}

// M46: what one answer that is lost or wrong does to an update.
func TestM46_UpdateIsDoneOnce(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		m, w := s.wired(t)
		other, b := s.manager(t), userBucket(t, s)
		bump := func(n int) action {
			return func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
				for range n {
					if _, err := other.Update(waitContext(t), b.Bucket(), strings.TrimPrefix(msg.Subject, "$KV."+b.Bucket()+"."), addOne); err != nil {
						t.Error(err)
					}
				}
				return nil, nats.ErrTimeout
			}
		}
		foreign := func(_ context.Context, msg *nats.Msg, _ jskv.Requester) (*nats.Msg, error) {
			if _, err := b.PutString(waitContext(t), strings.TrimPrefix(msg.Subject, "$KV."+b.Bucket()+"."), "70"); err != nil {
				t.Error(err)
			}
			return nil, nats.ErrTimeout
		}
		then := func(first, next action) action {
			return func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
				_, _ = first(ctx, msg, send)
				return next(ctx, msg, send)
			}
		}
		for i, c := range []struct {
			name   string
			act    action
			value  string // 10 before
			calls  int
			rev    uint64 // after the base
			failed error
		}{
			{"written, no answer", deaf, "11", 1, 1, nil},
			{"not written, no answer", vanish, "11", 1, 1, nil},
			{"not sent", notSent, "11", 2, 1, nil},
			{"written, and the connection closed", committed(closedConn), "11", 1, 1, nil},
			{"put off", busy, "11", 1, 1, nil},
			{"written, and put off by another leader", committed(busy), "11", 1, 1, nil},
			{"written, and refused by another leader", committed(conflicting(1)), "11", 1, 1, nil},
			{"refused by a leader that is behind", conflicting(0), "11", 1, 1, nil},
			{"written, and 7 others since", committed(bump(7)), "18", 1, 1, nil},
			{"written, and 8 others since", committed(bump(8)), "19", 1, 0, fabric.ErrUncertain},
			{"another was quicker", then(bump(1), goesThrough), "12", 2, 2, nil},
			{"7 others were quicker", then(bump(7), goesThrough), "18", 2, 8, nil},
			{"sent twice", twice, "11", 1, 1, nil},
			{"written, and a foreign write", committed(foreign), "70", 1, 0, fabric.ErrUncertain},
			{"a foreign write was quicker", then(foreign, goesThrough), "70", 1, 0, fabric.ErrUncertain},
		} {
			key := fmt.Sprint("k", i)
			base, err := b.PutString(waitContext(t), key, "10")
			if err != nil {
				t.Fatal(err)
			}
			f, calls := w.fault(1, userWrite(b), c.act), 0
			rev, err := m.Update(waitContext(t), b.Bucket(), key, func(old []byte) ([]byte, error) { calls++; return addOne(old) })
			if f.count() != 1 || calls != c.calls || !errors.Is(err, c.failed) || c.failed == nil && rev != base+c.rev {
				t.Errorf("%s: %d from %d, %v, %d calls", c.name, rev, base, err, calls)
			}
			f.end()
			expectValue(t, b, key, c.value)
		}
	})
}

// M46: revision 0 comes back where delete markers expire.
func TestM46_UpdateOfAnAbsenceIsNotRepeated(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		m, w := s.wired(t)
		js := s.jetStream(t)
		b, err := js.CreateKeyValue(waitContext(t), jetstream.KeyValueConfig{Bucket: fmt.Sprintf("users-%d", s.numbers.Add(1)), LimitMarkerTTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = js.DeleteKeyValue(waitContext(t), b.Bucket()) }()
		stream, err := js.Stream(waitContext(t), "KV_"+b.Bucket())
		if err != nil {
			t.Fatal(err)
		}
		w.fault(1, userWrite(b), deaf)
		if rev, err := m.Update(waitContext(t), b.Bucket(), "there", addOne); err != nil || rev != 1 {
			t.Errorf("written: %d, %v", rev, err)
		}
		w.fault(1, userWrite(b), committed(func(context.Context, *nats.Msg, jskv.Requester) (*nats.Msg, error) {
			return nil, errors.Join(nats.ErrTimeout, stream.Purge(waitContext(t), jetstream.WithPurgeSubject("$KV."+b.Bucket()+".gone")))
		}))
		if _, err := m.Update(waitContext(t), b.Bucket(), "gone", addOne); !errors.Is(err, fabric.ErrUncertain) {
			t.Errorf("written, deleted, and forgotten: %v", err)
		}
		if _, err := b.Get(waitContext(t), "gone"); !errors.Is(err, jetstream.ErrKeyNotFound) {
			t.Errorf("written again: %v", err)
		}
	})
}

// An update that is beaten again and again queues.
func TestUpdateFallsBack(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		m, w := s.wired(t)
		other, b := s.manager(t), userBucket(t, s)
		name := "update/" + b.Bucket() + "/k"
		f := w.fault(7, userWrite(b), func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
			if _, err := other.Update(waitContext(t), b.Bucket(), "k", addOne); err != nil {
				t.Error(err)
			}
			return send(ctx, msg)
		})
		calls := 0
		if _, err := m.Update(waitContext(t), b.Bucket(), "k", func(old []byte) ([]byte, error) {
			calls++
			if held := len(inspect(t, other, name).Holders) == 1; held != (calls > 5) {
				t.Errorf("call %d: held %v", calls, held)
			}
			return addOne(old)
		}); err != nil || calls != 8 || f.count() != 7 {
			t.Errorf("%v, %d calls, beaten %d times", err, calls, f.count())
		}
		expectValue(t, b, "k", "8")
		expectFree(t, m, name)
		if st := m.Stats(); st.UpdateTries != 8 || st.Updates != 1 || st.UpdateFallbacks != 1 {
			t.Errorf("%d tries, %d updates, %d fallbacks", st.UpdateTries, st.Updates, st.UpdateFallbacks)
		}

		// What is in doubt when ctx ends is said so, and what isn't is not.
		for uncertain, sort := range map[bool]func(*nats.Msg) bool{true: userWrite(b), false: userRead(b)} {
			f := w.fault(-1, sort, vanish)
			ctx, cancel := context.WithCancel(context.Background())
			go func() { <-f.hit; cancel() }()
			_, err := m.Update(ctx, b.Bucket(), "k", addOne)
			if errors.Is(err, fabric.ErrUncertain) != uncertain || !errors.Is(err, context.Canceled) {
				t.Errorf("given up, uncertain %v: %v", uncertain, err)
			}
			f.end()
		}
		expectValue(t, b, "k", "8")
	})
}

// M46: counters by several managers, over wires that lose requests and answers, beside a foreign writer.
func TestM46_CountersUpdatedAddUp(t *testing.T) {
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		const managers, each, keys = 4, 24, 3
		b := userBucket(t, s)
		var done, unknown [keys]atomic.Int64
		var all sync.WaitGroup
		for i := range managers {
			m, w := s.wired(t)
			r := rand.New(rand.NewPCG(46, uint64(i))) //nolint:gosec // a fixed seed
			var mu sync.Mutex
			w.fault(-1, func(msg *nats.Msg) bool { return userWrite(b)(msg) || userRead(b)(msg) }, func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
				mu.Lock()
				n := r.IntN(20)
				mu.Unlock()
				switch {
				case n < 4:
					return deaf(ctx, msg, send)
				case n < 6:
					return vanish(ctx, msg, send)
				case n < 7:
					return committed(busy)(ctx, msg, send)
				case n < 8:
					return twice(ctx, msg, send)
				}
				return send(ctx, msg)
			})
			all.Go(func() {
				for n := range each {
					k := n % keys
					switch _, err := m.Update(waitContext(t), b.Bucket(), fmt.Sprint("n", k), addOne); {
					case err == nil:
						done[k].Add(1)
					case errors.Is(err, fabric.ErrUncertain):
						unknown[k].Add(1)
					default:
						t.Error(err)
					}
				}
			})
		}
		all.Go(func() { // adds 1000 to the last counter, now and then
			for range 5 {
				time.Sleep(10 * time.Millisecond)
				e, err := b.Get(waitContext(t), "n2")
				if err != nil {
					continue
				}
				v, _ := strconv.Atoi(string(e.Value()))
				_, _ = b.Update(waitContext(t), "n2", []byte(strconv.Itoa(v+1000)), e.Revision())
			}
		})
		all.Wait()
		for k := range keys {
			e, err := b.Get(waitContext(t), fmt.Sprint("n", k))
			if err != nil {
				t.Fatal(err)
			}
			v, _ := strconv.Atoi(string(e.Value()))
			sum := int64(v % 1000)
			if sum < done[k].Load() || sum > done[k].Load()+unknown[k].Load() {
				t.Errorf("counter %d: %d, %d acknowledged, %d unknown", k, sum, done[k].Load(), unknown[k].Load())
			}
		}
	})
}
