package fabric_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
)

// userBucket returns a bucket that is not ours.
func userBucket(t *testing.T, s *site) jetstream.KeyValue {
	t.Helper()
	js := s.jetStream(t)
	name := fmt.Sprintf("users-%d", s.numbers.Add(1))
	b, err := js.CreateKeyValue(waitContext(t), jetstream.KeyValueConfig{Bucket: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = js.DeleteKeyValue(ctx, name)
	})
	// It is there, and for a moment no replica answers direct reads.
	for ctx, err := waitContext(t), nats.ErrNoResponders; errors.Is(err, nats.ErrNoResponders); {
		_, err = b.Get(ctx, "none")
	}
	return b
}

func TestRegister(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		r := fabric.NewRegister(userBucket(t, s), "k")
		ctx := waitContext(t)
		if f, err := r.Read(ctx); err != nil || f.Token != 0 || f.Value != nil || f.Revision != 0 {
			t.Errorf("before the first write: %+v, %v", f, err)
		}
		if _, err := r.Write(ctx, 0, []byte("x")); !errors.Is(err, fabric.ErrInvalidOption) {
			t.Errorf("token 0: %v", err)
		}
		var last uint64
		for i, w := range []struct {
			token uint64
			value []byte
			ok    bool
		}{
			{5, []byte("five"), true}, {5, []byte("five again"), true}, {4, []byte("late"), false},
			{9, []byte{0, 0xff, 1}, true}, {5, []byte("late"), false}, {9, nil, true}, {10, []byte{}, true},
		} {
			before, err := r.Read(ctx)
			if err != nil {
				t.Fatal(err)
			}
			rev, err := r.Write(ctx, w.token, w.value)
			if !w.ok {
				var stale *fabric.StaleTokenError
				if !errors.Is(err, fabric.ErrStaleToken) || !errors.As(err, &stale) || stale.Token != w.token || stale.Highest != before.Token {
					t.Errorf("write %d: %v", i, err)
				}
				if f, err := r.Read(ctx); err != nil || f.Revision != before.Revision {
					t.Errorf("write %d changed %+v to %+v, %v", i, before, f, err)
				}
				continue
			}
			f, rerr := r.Read(ctx)
			if err != nil || rerr != nil || rev <= last || f.Revision != rev || f.Token != w.token || !bytes.Equal(f.Value, w.value) {
				t.Errorf("write %d: %d, %v; then %+v, %v", i, rev, err, f, rerr)
			}
			last = rev
		}
	})
}

func TestRegisterIsNotOverwrittenByALateHolder(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		bucket, key := userBucket(t, s), s.key(t)
		m, w := s.wired(t, fabric.WithTTL(3*time.Second))
		old := acquire(t, m, key)
		w.fault(-1, anything, vanish) // as if it were stopped
		succ := acquire(t, s.manager(t), key)
		if _, err := fabric.NewRegister(bucket, "state").Write(waitContext(t), succ.Token(), []byte("new")); err != nil {
			t.Fatal(err)
		}
		if _, err := fabric.NewRegister(bucket, "state").Write(waitContext(t), old.Token(), []byte("old")); !errors.Is(err, fabric.ErrStaleToken) {
			t.Errorf("the late write: %v", err)
		}
	})
}

func TestRegisterRefusesWhatItDidNotWrite(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		bucket := userBucket(t, s)
		for i, value := range []string{"", "text", "{}", `{"v":3,"token":"1","write":"x"}`, `{"v":2,"token":1,"write":"x"}`, `{"v":2,"token":"0","write":"x"}`} {
			key := fmt.Sprint("k", i)
			rev, err := bucket.PutString(waitContext(t), key, value)
			if err != nil {
				t.Fatal(err)
			}
			r := fabric.NewRegister(bucket, key)
			_, readErr := r.Read(waitContext(t))
			_, writeErr := r.Write(waitContext(t), 9, []byte("x"))
			if !errors.Is(readErr, fabric.ErrNotRegister) || !errors.Is(writeErr, fabric.ErrNotRegister) {
				t.Errorf("%q: %v, %v", value, readErr, writeErr)
			}
			if e, err := bucket.Get(waitContext(t), key); err != nil || e.Revision() != rev {
				t.Errorf("%q was touched: %v, %v", value, e, err)
			}
		}
	})
}

// Writers with rising tokens race; whoever is told that it wrote did so, and a
// smaller token never comes after a larger one.
func TestRegisterUnderContention(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		bucket := userBucket(t, s)
		const writers = 8
		var mu sync.Mutex
		written := map[uint64]uint64{} // revision -> token
		var wg sync.WaitGroup
		for i := range uint64(writers) {
			wg.Go(func() {
				for token := i + 1; token <= 3*writers; token += writers {
					rev, err := fabric.NewRegister(bucket, "k").Write(waitContext(t), token, fmt.Append(nil, token))
					if err != nil && !errors.Is(err, fabric.ErrStaleToken) {
						t.Error(err)
					}
					if err == nil {
						mu.Lock()
						written[rev] = token
						mu.Unlock()
					}
				}
			})
		}
		wg.Wait()
		f, err := fabric.NewRegister(bucket, "k").Read(waitContext(t))
		if err != nil || f.Token != 3*writers || written[f.Revision] != f.Token {
			t.Errorf("%+v, %v", f, err)
		}
		for rev, token := range written {
			for later, other := range written {
				if later > rev && other < token {
					t.Errorf("token %d at revision %d, and %d at %d", token, rev, other, later)
				}
			}
		}
	})
}

// forgetful is a bucket whose writes are done and not acknowledged.
type forgetful struct {
	jetstream.KeyValue
	left int
}

func (f *forgetful) result(rev uint64, err error) (uint64, error) {
	if f.left--; f.left >= 0 && err == nil {
		return 0, nats.ErrTimeout
	}
	return rev, err
}

func (f *forgetful) Create(ctx context.Context, key string, value []byte, opts ...jetstream.KVCreateOpt) (uint64, error) {
	return f.result(f.KeyValue.Create(ctx, key, value, opts...))
}

func (f *forgetful) Update(ctx context.Context, key string, value []byte, rev uint64) (uint64, error) {
	return f.result(f.KeyValue.Update(ctx, key, value, rev))
}

func TestRegisterFindsOutWhetherItWrote(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		b := &forgetful{KeyValue: userBucket(t, s)}
		r := fabric.NewRegister(b, "k")
		for token := uint64(1); token < 4; token++ {
			b.left = 1
			rev, err := r.Write(waitContext(t), token, []byte("v"))
			f, rerr := r.Read(waitContext(t))
			if err != nil || rerr != nil || f.Revision != rev || f.Token != token || b.left != 0 {
				t.Errorf("token %d: %d, %v; then %+v, %v", token, rev, err, f, rerr)
			}
		}
	})
}

// What will never be written is an error at once, not one that is repeated until
// the context ends, which may be never.
func TestRegisterRefusesWhatCannotBeWritten(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		js := s.jetStream(t)
		small, err := js.CreateKeyValue(waitContext(t), jetstream.KeyValueConfig{Bucket: fmt.Sprintf("users-%d", s.numbers.Add(1)), MaxValueSize: 500})
		if err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct {
			bucket jetstream.KeyValue
			key    string
			size   int
		}{
			"no key":                     {userBucket(t, s), "not a key", 10},
			"larger than any message":    {userBucket(t, s), "k", 8 << 20},
			"larger than the bucket has": {small, "k", 1000},
		} {
			ctx := waitContext(t)
			_, err := fabric.NewRegister(c.bucket, c.key).Write(ctx, 5, bytes.Repeat([]byte("x"), c.size))
			if !errors.Is(err, fabric.ErrInvalidOption) || errors.Is(err, fabric.ErrUnavailable) || ctx.Err() != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
