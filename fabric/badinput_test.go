package fabric_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

func TestBadNames(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m := s.manager(t)
		for what, name := range map[string]string{
			"empty": "", "too long": strings.Repeat("x", kv.MaxNameLen+1), "too deep": strings.Repeat("a/", kv.MaxNameDepth) + "a",
			"NUL": "a\x00b", "newline": "a\nb", "DEL": "a\x7fb", "C1 control": "a\u0085b", "not UTF-8": "a\xffb", "half a rune": "\xe2\x82",
		} {
			_, acquireErr := m.Acquire(waitContext(t), name)
			_, tryErr := m.TryAcquire(waitContext(t), name)
			_, inspectErr := m.Inspect(waitContext(t), name)
			_, forceErr := m.ForceRelease(waitContext(t), name)
			doErr := m.Do(waitContext(t), name, func(context.Context, *fabric.Lock) error { return nil })
			for op, err := range map[string]error{"Acquire": acquireErr, "TryAcquire": tryErr, "Inspect": inspectErr, "ForceRelease": forceErr, "Do": doErr} {
				var bad *kv.NameError
				if !errors.Is(err, fabric.ErrInvalidName) || !errors.As(err, &bad) {
					t.Errorf("%s of a name that is %s: %v", op, what, err)
				}
			}
		}
		for _, name := range []string{"/", "//", "a b", ">", "*", "a.b", "=41", "ünï/cødé", strings.Repeat("x", kv.MaxNameLen), "$KV.x"} {
			l := acquire(t, m, name)
			if info := inspect(t, m, name); info.Key != name || len(info.Holders) != 1 {
				t.Errorf("%q: %+v", name, info)
			}
			release(t, l)
		}
	})
}

func TestBadManagerOptions(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		nc := s.conn(t)
		for name, opts := range map[string][]fabric.Option{
			"no TTL":                   {fabric.WithTTL(0)},
			"negative TTL":             {fabric.WithTTL(-time.Second)},
			"TTL too short":            {fabric.WithTTL(fabric.MinTTL - 1)},
			"TTL too long":             {fabric.WithTTL(fabric.MaxTTL + 1)},
			"TTL of 292 years":         {fabric.WithTTL(1<<63 - 1)},
			"no renew interval":        {fabric.WithRenewInterval(0)},
			"negative renew interval":  {fabric.WithRenewInterval(-1)},
			"renew interval too long":  {fabric.WithTTL(time.Second), fabric.WithRenewInterval(901 * time.Millisecond)},
			"and in the other order":   {fabric.WithRenewInterval(901 * time.Millisecond), fabric.WithTTL(time.Second)},
			"limited for all":          {fabric.WithMaxRenewals(3)},
			"not renewed for all":      {fabric.WithAutoRenew(false)},
			"no renewals":              {fabric.WithMaxRenewals(0)},
			"no fabric name":           {fabric.WithFabric("")},
			"fabric name with a dot":   {fabric.WithFabric("a.b")},
			"fabric name with a space": {fabric.WithFabric("a b")},
			"fabric name too long":     {fabric.WithFabric(strings.Repeat("x", 65))},
			"no replicas":              {fabric.WithReplicas(0)},
			"negative replicas":        {fabric.WithReplicas(-1)},
			"six replicas":             {fabric.WithReplicas(6)},
			"label too long":           {fabric.WithLabel(strings.Repeat("x", fabric.MaxOwnerLen+1))},
			"label not UTF-8":          {fabric.WithLabel("\xff")},
			"nil logger":               {fabric.WithLogger(nil)},
			"nil option":               {nil},
		} {
			m, err := fabric.New(waitContext(t), nc, opts...)
			if !errors.Is(err, fabric.ErrInvalidOption) {
				t.Errorf("New, %s: %v", name, err)
			}
			if err == nil {
				_ = m.Close()
			}
			// The address is never tried: nonsense is found before.
			if _, err := fabric.Connect(waitContext(t), "nats://127.0.0.1:1", opts...); !errors.Is(err, fabric.ErrInvalidOption) {
				t.Errorf("Connect, %s: %v", name, err)
			}
		}
		if _, err := fabric.New(waitContext(t), nil); !errors.Is(err, fabric.ErrInvalidOption) {
			t.Errorf("New without a connection: %v", err)
		}
		if err := fabric.StandBy(waitContext(t), nil); !errors.Is(err, fabric.ErrInvalidOption) {
			t.Errorf("StandBy without a connection: %v", err)
		}
	})
}

func TestBadAcquireOptions(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, key := s.manager(t, fabric.WithTTL(10*time.Second)), s.key(t)
		for name, opts := range map[string][]fabric.AcquireOption{
			"no TTL":                      {fabric.WithTTL(0)},
			"negative TTL":                {fabric.WithTTL(-1)},
			"TTL too long":                {fabric.WithTTL(fabric.MaxTTL + time.Hour)},
			"no renew interval":           {fabric.WithRenewInterval(0)},
			"renew interval over the TTL": {fabric.WithRenewInterval(10 * time.Second)},
			"no renewals":                 {fabric.WithMaxRenewals(0)},
			"negative renewals":           {fabric.WithMaxRenewals(-1)},
			"renewals without renewal":    {fabric.WithAutoRenew(false), fabric.WithMaxRenewals(3)},
			"an interval without renewal": {fabric.WithAutoRenew(false), fabric.WithRenewInterval(time.Second)},
			"no wait":                     {fabric.WithWaitLimit(0)},
			"negative wait":               {fabric.WithWaitLimit(-time.Second)},
			"no mode":                     {fabric.WithMode("")},
			"unknown mode":                {fabric.WithMode("Q")},
			"a mode in lower case":        {fabric.WithMode("six")},
			"no owner":                    {fabric.WithOwner("")},
			"owner too long":              {fabric.WithOwner(strings.Repeat("x", fabric.MaxOwnerLen+1))},
			"owner not UTF-8":             {fabric.WithOwner("\xff")},
			"too much metadata":           {fabric.WithMetadata(map[string]string{"k": strings.Repeat("x", fabric.MaxMetadata)})},
			"too much in several":         {fabric.WithMetadata(map[string]string{"a": strings.Repeat("x", 600), "b": strings.Repeat("x", 600)})},
			"metadata not UTF-8":          {fabric.WithMetadata(map[string]string{"k": "\xff"})},
			"metadata key not UTF-8":      {fabric.WithMetadata(map[string]string{"\xff": "v"})},
			"nil option":                  {nil},
		} {
			for op, do := range map[string]func(context.Context, string, ...fabric.AcquireOption) (*fabric.Lock, error){
				"Acquire": m.Acquire, "TryAcquire": m.TryAcquire,
			} {
				if _, err := do(waitContext(t), key, opts...); !errors.Is(err, fabric.ErrInvalidOption) || !errors.Is(err, fabric.ErrNotAcquired) {
					t.Errorf("%s, %s: %v", op, name, err)
				}
			}
		}
		if info := inspect(t, m, key); info.Revision != 0 {
			t.Errorf("something was written: %+v", info)
		}
		// What is at the edge of sense is not refused.
		for _, opts := range [][]fabric.AcquireOption{
			{fabric.WithTTL(fabric.MaxTTL)},
			{fabric.WithTTL(time.Second), fabric.WithRenewInterval(900 * time.Millisecond)},
			{fabric.WithOwner(strings.Repeat("x", fabric.MaxOwnerLen)), fabric.WithMetadata(map[string]string{"k": strings.Repeat("\x01", fabric.MaxMetadata-1)})},
			{fabric.WithMetadata(nil), fabric.WithMaxRenewals(1 << 30), fabric.WithWaitLimit(1<<63 - 1)},
		} {
			release(t, acquire(t, m, key, opts...))
		}
	})
}

func TestNilFunctions(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, ctx, key := s.manager(t), waitContext(t), "nothing-to-call"
		_, updateErr := m.Update(ctx, "no-such-bucket", key, nil)
		for what, err := range map[string]error{
			"Do":             m.Do(ctx, key, nil),
			"DoAll":          m.DoAll(ctx, []fabric.Want{{Key: key}}, nil),
			"DoPath":         m.DoPath(ctx, key, fabric.Exclusive, nil),
			"ReadOptimistic": m.ReadOptimistic(ctx, key, nil),
			"RetryDeadlock":  fabric.RetryDeadlock(ctx, nil),
			"Update":         updateErr,
		} {
			if !errors.Is(err, fabric.ErrInvalidOption) || !strings.Contains(err.Error(), "function") {
				t.Errorf("%s without a function: %v", what, err)
			}
		}
		if st := m.Stats(); st.Operations != 0 {
			t.Errorf("%d operations without a function to call", st.Operations)
		}
	})
}

func TestRecordsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m := s.manager(t)
		for name, value := range map[string]string{
			"empty": "", "text": "hello", "no JSON": `{"v":3,"kind":"lock"`, "a list": "[]", "no version": `{"kind":"lock"}`,
			"newer": `{"v":9,"kind":"lock","holders":[{"shape":"new"}]}`, "newer kind": `{"v":3,"kind":"turnstile","permits":3}`, "binary": "\x00\x01\xff", "unknown field": `{"v":3,"kind":"lock","x":1}`,
			"too long": `{"v":3,"kind":"lock"}{}`,
		} {
			t.Run(name, func(t *testing.T) {
				key := s.key(t)
				enc, err := kv.EncodeName(key)
				if err != nil {
					t.Fatal(err)
				}
				rev, err := s.locks(t, enc).Put(waitContext(t), enc, []byte(value))
				if err != nil {
					t.Fatal(err)
				}
				want, kind := fabric.ErrMalformedRecord, "unreadable"
				if strings.HasPrefix(name, "newer") {
					want, kind = fabric.ErrNewerSchema, "newer"
				}
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				_, acquireErr := m.Acquire(ctx, key)
				_, tryErr := m.TryAcquire(ctx, key)
				_, inspectErr := m.Inspect(ctx, key)
				_, forceErr := m.ForceRelease(ctx, key)
				for op, err := range map[string]error{"Acquire": acquireErr, "TryAcquire": tryErr, "Inspect": inspectErr, "ForceRelease": forceErr} {
					if !errors.Is(err, want) || errors.Is(err, fabric.ErrMalformedRecord) == errors.Is(err, fabric.ErrNewerSchema) {
						t.Errorf("%s: %v", op, err)
					}
				}
				list, err := m.List(ctx, key)
				if err != nil || len(list) != 1 || list[0].Kind != kind || list[0].Holders == nil || list[0].Waiters == nil || list[0].Revision != rev {
					t.Errorf("List: %+v, %v", list, err)
				}
				e, err := s.locks(t, enc).Get(ctx, enc)
				if err != nil || string(e.Value()) != value || e.Revision() != rev {
					t.Errorf("now it is %v, %v", e, err)
				}
				// Once it is repaired, all goes on.
				if err := s.locks(t, enc).Purge(ctx, enc); err != nil {
					t.Fatal(err)
				}
				release(t, acquire(t, m, key))
			})
		}
	})
}

// Somebody writes nonsense over a lock in use.
func TestRecordOverwritten(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		key, m := s.key(t), s.manager(t)
		enc, err := kv.EncodeName(key)
		if err != nil {
			t.Fatal(err)
		}
		l := acquire(t, s.manager(t), key)
		wait := queue(t, waitContext(t), m, key)
		good, err := s.locks(t, enc).Get(waitContext(t), enc)
		if err != nil {
			t.Fatal(err)
		}
		rev, err := s.locks(t, enc).Put(waitContext(t), enc, []byte("nonsense"))
		if err != nil {
			t.Fatal(err)
		}
		if g := receive(t, wait); !errors.Is(g.err, fabric.ErrMalformedRecord) {
			t.Errorf("the waiter: %+v", g)
		}
		if err := l.Release(waitContext(t)); !errors.Is(err, fabric.ErrUnconfirmed) {
			t.Errorf("release: %v", err)
		}
		if e, err := s.locks(t, enc).Get(waitContext(t), enc); err != nil || e.Revision() != rev {
			t.Errorf("now it is %v, %v", e, err)
		}
		// And somebody repairs it, with the entries of both, who have left.
		if _, err := s.locks(t, enc).Put(waitContext(t), enc, good.Value()); err != nil {
			t.Fatal(err)
		}
		release(t, acquire(t, s.manager(t), key))
	})
}

func TestClosedManager(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		key, m := s.key(t), s.manager(t)
		holder := acquire(t, s.manager(t), key)
		wait := queue(t, waitContext(t), m, key)
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if g := receive(t, wait); !errors.Is(g.err, fabric.ErrClosed) || !errors.Is(g.err, fabric.ErrNotAcquired) {
			t.Errorf("who waited: %+v", g)
		}
		_, acquireErr := m.Acquire(waitContext(t), key)
		_, tryErr := m.TryAcquire(waitContext(t), key)
		_, inspectErr := m.Inspect(waitContext(t), key)
		_, listErr := m.List(waitContext(t), "")
		_, forceErr := m.ForceRelease(waitContext(t), key)
		for op, err := range map[string]error{"Acquire": acquireErr, "TryAcquire": tryErr, "Inspect": inspectErr, "List": listErr, "ForceRelease": forceErr} {
			if !errors.Is(err, fabric.ErrClosed) {
				t.Errorf("%s: %v", op, err)
			}
		}
		other := s.manager(t)
		release(t, holder)
		release(t, acquire(t, other, key)) // its entry blocks nobody
		if err := m.Close(); err != nil {
			t.Errorf("closed again: %v", err)
		}
	})
}
