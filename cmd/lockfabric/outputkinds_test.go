//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

// shows inspects until the JSON has all of these, each time as the table says.
func (tb table) shows(t *testing.T, key string, want ...string) {
	t.Helper()
	eventually(t, strings.Join(want, " and ")+" of "+key, func() bool {
		got := tb.printed(t, 0, "inspect", key)
		for _, w := range want {
			if !strings.Contains(got, w) {
				return false
			}
		}
		return true
	})
}

func claim(t *testing.T, m *fabric.Manager, key string, c fabric.Claim) *fabric.Hold {
	t.Helper()
	h, err := m.Claim(t.Context(), key, c)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func free(t *testing.T, holds ...*fabric.Hold) {
	t.Helper()
	for _, h := range holds {
		if err := h.Release(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

func outputOfSemaphores(t *testing.T, m *fabric.Manager, tb table) {
	h := claim(t, m, "pool", fabric.Claim{Kind: fabric.KindSemaphore, Permits: 2, Limit: 3})
	tb.shows(t, "pool", `"size": 3`, `"taken": 2`, `"permits": 2`)
	// One that waits for more than there are, and does not hear it.
	deaf := start(t, lockfabric(t, "run", "pool", "--semaphore", "3", "--permits", "2", "--", "true"))
	waiters(t, m, "pool", 1)
	deaf.signal(syscall.SIGSTOP)
	info, err := m.Read(t.Context(), "pool")
	if err == nil {
		_, err = m.Post(t.Context(), "pool", fabric.Post{Kind: fabric.KindSemaphore, Verb: "resize", N: 1, Limit: 3, Base: info.Sized, Life: info.Life})
	}
	if err != nil {
		t.Fatal(err)
	}
	tb.shows(t, "pool", `"size": 1`, `"initial": 3`, `"sized"`, `"refused": true`)
	if code, stdout, _ := run(t, lockfabric(t, "inspect", "pool")); code != 0 || !strings.Contains(stdout, "more than there are") || !strings.Contains(stdout, "made with:") {
		t.Errorf("exit code %d, %q", code, stdout)
	}
	deaf.signal(syscall.SIGCONT)
	deaf.exits(65)
	if text := deaf.err.String(); !strings.Contains(text, `"pool" has 1`) {
		t.Errorf("stderr %q", text)
	}
	free(t, h)
	tb.shows(t, "pool", `"size": 1`) // worth keeping
	if err := primitives.NewSemaphore(m, "pool", 1).Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

func outputOfElections(t *testing.T, m *fabric.Manager, tb table) {
	for _, value := range []string{"text", "\xff"} {
		lead := claim(t, m, "svc", fabric.Claim{Kind: fabric.KindLock, Value: []byte(value)})
		ctx, cancel := context.WithCancel(t.Context())
		given := make(chan error)
		go func() {
			_, err := m.Claim(ctx, "svc", fabric.Claim{Kind: fabric.KindLock, Value: []byte(value)})
			given <- err
		}()
		waiters(t, m, "svc", 1)
		tb.shows(t, "svc", map[bool]string{true: `"value": "text"`, false: `"data": "/w=="`}[value == "text"])
		cancel()
		<-given
		free(t, lead)
	}
}

func outputOfConditions(t *testing.T, m *fabric.Manager, tb table) {
	h := claim(t, m, "queue", fabric.Claim{Kind: fabric.KindLock})
	back := make(chan *fabric.Hold)
	go func() {
		h, err := m.Claim(t.Context(), "queue", fabric.Claim{Kind: fabric.KindLock, Verb: "wait", From: h, Queue: "not-empty"})
		if err != nil {
			t.Error(err)
		}
		back <- h
	}()
	other := claim(t, m, "queue", fabric.Claim{Kind: fabric.KindLock})
	tb.shows(t, "queue", `"name": "not-empty"`)
	if code, stdout, _ := run(t, lockfabric(t, "inspect", "queue")); code != 0 || !strings.Contains(stdout, "WAITER FOR not-empty") {
		t.Errorf("exit code %d, %q", code, stdout)
	}
	if _, err := other.Post(t.Context(), fabric.Post{Kind: fabric.KindLock, Verb: "signal", Queue: "not-empty"}); err != nil {
		t.Fatal(err)
	}
	tb.shows(t, "queue", `"signalled": "not-empty"`)
	free(t, other)
	if h = <-back; h != nil {
		tb.shows(t, "queue", `"signalled": "not-empty"`, `"waiters": []`)
		free(t, h)
	}
}

func outputOfBarriers(t *testing.T, m *fabric.Manager, tb table) {
	waiting := start(t, lockfabric(t, "barrier", "sync", "-n", "2"))
	tb.shows(t, "sync", `"arrived": 1`, `"parties": 2`)
	waiting.signal(killable)
	waiting.exits(143)
	tb.shows(t, "sync", `"broken": true`, `"why": "cancelled"`, `"who"`)
	// The last one acts, and the others wait for that.
	acts, done := make(chan struct{}), make(chan struct{})
	passed := make(chan error)
	wait := func() {
		_, err := primitives.NewBarrier(m, "sync", 2).WithAction(func(context.Context, uint64) error {
			close(acts)
			<-done
			return nil
		}).Wait(t.Context())
		passed <- err
	}
	go wait()
	waiters(t, m, "sync", 1)
	go wait()
	<-acts
	tb.shows(t, "sync", `"acting": true`)
	if code, stdout, _ := run(t, lockfabric(t, "inspect", "sync")); code != 0 || !strings.Contains(stdout, "an action runs") || !strings.Contains(stdout, "broken: cancelled by") {
		t.Errorf("exit code %d, %q", code, stdout)
	}
	close(done)
	for range 2 {
		if err := <-passed; err != nil {
			t.Error(err)
		}
	}
	tb.shows(t, "sync", `"generation": 3`)
	if err := primitives.NewBarrier(m, "sync", 2).Delete(t.Context()); err != nil {
		t.Error(err)
	}

	// A double barrier: one who is in, and one who leaves.
	var members []*primitives.Member
	entered := make(chan *primitives.Member)
	for range 2 {
		go func() {
			member, err := primitives.NewDoubleBarrier(m, "phase", 2).Enter(t.Context())
			if err != nil {
				t.Error(err)
			}
			entered <- member
		}()
	}
	for range 2 {
		members = append(members, <-entered)
	}
	late := start(t, lockfabric(t, "barrier", "phase", "-n", "2", "--", "true"))
	waiters(t, m, "phase", 1)
	left := make(chan error)
	go func() { left <- members[0].Leave(t.Context()) }()
	tb.shows(t, "phase", `"open": true`, `"leaving": true`)
	free(t, members[1].Hold)
	if err := <-left; err != nil {
		t.Error(err)
	}
	late.signal(killable)
	late.exits(143)
}

func outputOfLatches(t *testing.T, m *fabric.Manager, doc string, tb table) {
	counts := outputTable(t, doc, "latch count-down")
	counts.printed(t, 0, "latch", "count-down", "ready", "--count", "2")
	tb.shows(t, "ready", `"count": 1`, `"initial": 2`)
	counts.complete(t, countResult{})
	// What was counted by the dead is not told apart any more, and stays counted.
	if code, _, stderr := run(t, lockfabric(t, "gc")); code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	tb.shows(t, "ready", `"count": 1`, `"fenced"`)
	counts.printed(t, 0, "latch", "count-down", "ready")
	tb.shows(t, "ready", `"open": true`)
	if code, _, stderr := run(t, lockfabric(t, "latch", "delete", "ready")); code != 0 {
		t.Errorf("exit code %d, %s", code, stderr)
	}

	once := primitives.NewOnce(m, "init").WithRetention(time.Hour)
	for _, result := range []string{"text", "\xff"} {
		if _, err := once.Do(t.Context(), func(context.Context, uint64) ([]byte, error) {
			tb.shows(t, "init", `"kind": "once"`)
			return []byte(result), nil
		}); err != nil {
			t.Fatal(err)
		}
		tb.shows(t, "init", `"by"`, `"retention_ns": 3600000000000`, map[bool]string{true: `"value": "text"`, false: `"data": "/w=="`}[result == "text"])
		if code, stdout, _ := run(t, lockfabric(t, "inspect", "init")); code != 0 || !strings.Contains(stdout, "done") || !strings.Contains(stdout, "1h0m0s") {
			t.Errorf("exit code %d, %q", code, stdout)
		}
		if err := once.Forget(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func outputOfKept(t *testing.T, m *fabric.Manager, tb table) {
	use := func() *fabric.Lock {
		l, err := m.Acquire(t.Context(), "shard", fabric.WithKeep(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	eventually(t, "the lock is kept", func() bool { // by the second acquire, if every request is answered in time
		before := m.Stats().KeptJoins
		free(t, use().Hold)
		return m.Stats().KeptJoins > before
	})
	tb.shows(t, "shard", `"kept": "idle"`)
	l := use()
	tb.shows(t, "shard", `"kept": "used"`)
	eventually(t, "ls --long says that it is used", func() bool { // or "unknown", as long as the answer is late
		code, stdout, _ := run(t, lockfabric(t, "ls", "--long"))
		return code == 0 && strings.Contains(stdout, "live,kept used")
	})
	free(t, l.Hold)
	eventually(t, "a stamp", func() bool { // it is not in the list of those who come after; on a busy machine the release is late
		_, err := m.Optimistic(t.Context(), "shard")
		if err != nil && !errors.Is(err, fabric.ErrHeld) {
			t.Fatal(err)
		}
		return err == nil
	})
}

// outputOfCoalescer has somebody serve, whom inspect names.
func outputOfCoalescer(t *testing.T, tb table) {
	m := manager(t, fabric.WithCoalescer())
	nc, _ := dialTo(t, server.ClientURL())
	eventually(t, "it serves", func() bool {
		if err := nc.Publish("lf."+fabricName(t)+".0.hello", nil); err != nil {
			t.Fatal(err)
		}
		return m.Stats().Serving > 0
	})
	w := start(t, lockfabric(t, "--output", "json", "inspect", "--watch", "free"))
	watched := strings.ReplaceAll(w.line(), `":`, `": `)
	w.signal(os.Interrupt)
	w.exits(0)
	for _, got := range []string{tb.printed(t, 0, "inspect", "free"), watched} {
		for _, want := range []string{`"rank": 2`, fmt.Sprintf(`"pid": %d`, os.Getpid()), fmt.Sprintf(`"term": "%d"`, m.Stats().Serving)} {
			if !strings.Contains(got, want) {
				t.Errorf("no %s in %s", want, got)
			}
		}
	}
}
