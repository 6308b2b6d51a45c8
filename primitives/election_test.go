package primitives_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

func TestElectionConformance(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"one leader per term, and the next after it resigns", electionResign},
		{"the next after a leader crashes", electionCrash},
		{"observers see no older term after a newer one, and the last of every change", electionObserve},
		{"proclaim, and a proclamation of a former leader", electionProclaim},
		{"a leader that is cut off knows before the next leads", electionCutOff},
		{"nobody leads", electionNobody},
		{"Run campaigns again after a loss, and never overlaps", electionRun},
		{"campaign, proclaim and resign are one write each", electionWrites},
	})
}

func campaign(t *testing.T, e *primitives.Election, value string) *primitives.Leadership {
	t.Helper()
	l, err := e.Campaign(waitContext(t), []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func campaignLater(t *testing.T, e *primitives.Election, value string) <-chan result[*primitives.Leadership] {
	ctx := waitContext(t)
	return async(func() (*primitives.Leadership, error) { return e.Campaign(ctx, []byte(value)) })
}

func expectLeader(t *testing.T, e *primitives.Election, term uint64, value string) {
	t.Helper()
	if l, err := e.Leader(waitContext(t)); err != nil || l.Term != term || string(l.Value) != value {
		t.Errorf("%+v, %v; want %q in term %d", l, err, value, term)
	}
}

func electionResign(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	a, b := primitives.NewElection(m, key, fabric.WithOwner("a")), primitives.NewElection(s.manager(t), key)
	first := campaign(t, a, "east")
	expectLeader(t, b, first.Term(), "east")
	next := campaignLater(t, b, "west")
	waitQueue(t, m, key, 1)
	if list, err := a.Candidates(waitContext(t)); err != nil || len(list) != 1 || string(list[0].Value) != "west" || list[0].Term != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if l, err := b.Leader(waitContext(t)); err != nil || l.Owner != "a" || l.ID != first.ID() {
		t.Errorf("%+v, %v", l, err)
	}
	if err := first.Resign(waitContext(t)); err != nil {
		t.Error(err)
	}
	second := must(t, next)
	if second.Term() <= first.Term() || !errors.Is(first.Err(), fabric.ErrReleased) {
		t.Errorf("term %d after %d, %v", second.Term(), first.Term(), first.Err())
	}
	expectLeader(t, a, second.Term(), "west")
	release(t, second)
}

func electionCrash(t *testing.T, s *site) {
	key := s.key(t)
	m, die := crash(t, s, fabric.WithTTL(mortalTTL))
	first := campaign(t, primitives.NewElection(m, key), "dies")
	e := primitives.NewElection(s.manager(t), key)
	die()
	second := campaign(t, e, "lives")
	if second.Term() <= first.Term() || !errors.Is(first.Err(), fabric.ErrLost) {
		t.Errorf("term %d after %d, whose leader says %v", second.Term(), first.Term(), first.Err())
	}
	release(t, second)
}

func electionObserve(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	e := primitives.NewElection(m, key)
	ctx, cancel := context.WithCancel(waitContext(t))
	seen := make(chan primitives.Leader, 100)
	ended := async(func() (struct{}, error) {
		for l, err := range primitives.NewElection(s.manager(t), key).Observe(ctx) {
			if err != nil {
				return struct{}{}, err
			}
			seen <- l
		}
		return struct{}{}, nil
	})
	newest := uint64(0)
	until := func(term uint64, value string) {
		t.Helper()
		for {
			l := receive(t, seen)
			if l.Term != 0 && l.Term < newest {
				t.Fatalf("term %d after %d", l.Term, newest)
			}
			newest = max(newest, l.Term)
			if l.Term == term && string(l.Value) == value {
				return
			}
		}
	}
	until(0, "")
	for i := range 3 {
		l := campaign(t, e, fmt.Sprint("candidate ", i))
		until(l.Term(), fmt.Sprint("candidate ", i))
		if err := l.Proclaim(ctx, []byte("busy")); err != nil {
			t.Error(err)
		}
		until(l.Term(), "busy")
		release(t, l)
		until(0, "")
	}
	cancel()
	if r := receive(t, ended); !errors.Is(r.err, context.Canceled) {
		t.Errorf("%v", r.err)
	}

	// Many terms in a row, faster than anybody looks.
	ctx, cancel = context.WithCancel(waitContext(t))
	defer cancel()
	fast := async(func() (*primitives.Leadership, error) {
		for range 20 {
			l, err := e.Campaign(ctx, nil)
			if err != nil {
				return nil, err
			}
			if err := l.Resign(ctx); err != nil {
				return nil, err
			}
		}
		return e.Campaign(ctx, []byte("the last"))
	})
	newest = 0
	for l, err := range primitives.NewElection(s.manager(t), key).Observe(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if l.Term != 0 && l.Term < newest {
			t.Errorf("term %d after %d", l.Term, newest)
		}
		newest = max(newest, l.Term)
		if string(l.Value) == "the last" {
			break
		}
	}
	last := must(t, fast)
	if newest != last.Term() {
		t.Errorf("the last term seen is %d, was %d", newest, last.Term())
	}
	release(t, last)
}

func electionProclaim(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	e := primitives.NewElection(m, key)
	l := campaign(t, e, "")
	expectLeader(t, e, l.Term(), "")
	big := strings.Repeat("x", 64<<10)
	for _, value := range []string{"busy", big, "", "\x00\xff"} {
		if err := l.Proclaim(waitContext(t), []byte(value)); err != nil {
			t.Error(err)
		}
		expectLeader(t, e, l.Term(), value)
	}
	if err := l.Proclaim(waitContext(t), []byte(big+"x")); !errors.Is(err, fabric.ErrTooLarge) || l.Err() != nil {
		t.Errorf("%v, %v", err, l.Err())
	}
	if _, err := primitives.NewElection(m, s.key(t)).Campaign(waitContext(t), make([]byte, 1025)); !errors.Is(err, fabric.ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if n, err := s.manager(t).ForceRelease(waitContext(t), key, fabric.ForceNow()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	next := campaign(t, primitives.NewElection(s.manager(t), key), "next")
	if err := l.Proclaim(waitContext(t), []byte("late")); !errors.Is(err, fabric.ErrLost) {
		t.Errorf("of a former leader: %v", err)
	}
	expectLeader(t, e, next.Term(), "next")
	release(t, next)
}

func electionCutOff(t *testing.T, s *site) {
	key := s.key(t)
	c := s.proxied(t)
	first := campaign(t, primitives.NewElection(newManager(t, c.conn, fabric.WithTTL(mortalTTL)), key), "")
	next := primitives.NewElection(s.manager(t), key)
	led := async(func() (*primitives.Leadership, error) {
		l, err := next.Campaign(waitContext(t), nil)
		if first.Err() == nil {
			t.Error("two lead")
		}
		return l, err
	})
	c.cut()
	receive(t, first.Lost())
	second := must(t, led)
	if second.Term() <= first.Term() || !errors.Is(first.Err(), fabric.ErrLost) {
		t.Errorf("term %d after %d, %v", second.Term(), first.Term(), first.Err())
	}
	release(t, second)
}

func electionNobody(t *testing.T, s *site) {
	e := primitives.NewElection(s.manager(t), s.key(t))
	if l, err := e.Leader(waitContext(t)); !errors.Is(err, primitives.ErrNoLeader) || l.Term != 0 {
		t.Errorf("%+v, %v", l, err)
	}
	if list, err := e.Candidates(waitContext(t)); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

func electionRun(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	e := primitives.NewElection(m, key)
	running, calls := false, 0
	var last uint64
	failed := errors.New("failed")
	err := e.Run(waitContext(t), nil, func(ctx context.Context, l *primitives.Leadership) error {
		if running || ctx.Err() != nil || l.Err() != nil || l.Term() <= last {
			t.Errorf("running %v, %v, %v, term %d after %d", running, ctx.Err(), l.Err(), l.Term(), last)
		}
		running, last = true, l.Term()
		defer func() { running = false }()
		if calls++; calls == 3 {
			return failed
		}
		if n, err := s.manager(t).ForceRelease(waitContext(t), key); n != 1 || err != nil {
			t.Error(n, err)
		}
		receive(t, ctx.Done())
		if !errors.Is(context.Cause(ctx), fabric.ErrLost) {
			t.Error(context.Cause(ctx))
		}
		return errors.New("of a term that was lost")
	})
	if !errors.Is(err, failed) || calls != 3 {
		t.Errorf("%v after %d calls", err, calls)
	}
	expectFree(t, m, key)

	ctx, cancel := context.WithCancel(waitContext(t))
	err = e.Run(ctx, nil, func(ctx context.Context, _ *primitives.Leadership) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	expectFree(t, m, key)
}

func electionWrites(t *testing.T, s *site) {
	m := s.manager(t)
	e := primitives.NewElection(m, s.key(t))
	release(t, campaign(t, e, "")) // opens what is opened once
	var l *primitives.Leadership
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"campaign", func() (err error) { l, err = e.Campaign(waitContext(t), []byte("x")); return err }},
		{"proclaim", func() error { return l.Proclaim(waitContext(t), []byte("y")) }},
		{"resign", func() error { return l.Resign(waitContext(t)) }},
	} {
		if n := writes(func() {
			if err := step.do(); err != nil {
				t.Errorf("%s: %v", step.name, err)
			}
		}, m); n.not(1) {
			t.Errorf("%s: %d writes", step.name, n)
		}
	}
}
