package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/pause"
)

// progressEvery is how long a wait is silent first, and then how often what is
// shown is brought up to date.
const progressEvery = time.Second

// startProgress shows, from a second on, who is in the way of an acquire by this
// manager. The function it returns ends that and erases the line; nothing is
// written after it has returned.
func startProgress(ctx context.Context, m *fabric.Manager, key string, line *statusLine) (erase func()) {
	var last atomic.Pointer[fabric.Info]
	started := time.Now()
	text := func() string { return waiting(key, last.Load(), started, time.Now()) }
	return showing(ctx, line, text, func(ctx context.Context) {
		if !pause.For(ctx, progressEvery) {
			return // most waits end here, and nobody had to be asked
		}
		for info, err := range m.Watch(ctx, key) {
			if err != nil {
				return // the acquire tells, if it matters
			}
			last.Store(&info)
			line.show(text())
			if !pause.For(ctx, progressEvery) { // a busy lock is looked at no more often than it is shown
				return
			}
		}
	})
}

// startChecks shows, from a second on, what doctor looks at, as it is told by at.
// erase ends that and erases the line.
func startChecks(ctx context.Context, line *statusLine) (at func(what string), erase func()) {
	var now atomic.Value
	started := time.Now()
	return func(what string) { now.Store(what) }, showing(ctx, line, func() string {
		return fmt.Sprintf("doctor %s: %v", age(started, time.Now()), now.Load())
	}, func(context.Context) {})
}

// showing shows text, brought up to date every second, and calls beside until erase,
// which waits for it.
func showing(ctx context.Context, line *statusLine, text func() string, beside func(ctx context.Context)) (erase func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { beside(ctx) })
	wg.Go(func() {
		for pause.For(ctx, progressEvery) {
			line.show(text())
		}
	})
	return func() {
		cancel()
		wg.Wait()
		line.show("")
	}
}

// waiting is the line. What matters most comes first, because the end may be cut.
func waiting(key string, info *fabric.Info, started, now time.Time) string {
	text := fmt.Sprintf("waiting %s for %s", age(started, now), printable(key))
	if info == nil {
		return text
	}
	for i, p := range info.Waiters {
		if p.Own {
			text += fmt.Sprintf(", %d of %d in the queue", i+1, len(info.Waiters))
			break
		}
	}
	if len(info.Holders) == 0 {
		return text
	}
	h := info.Holders[0]
	text += ", held by " + holder(h) + ", who asked " + age(h.Since, now) + " ago"
	if n := len(info.Holders) - 1; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// holder names who is behind a hold as well as it is known.
func holder(p fabric.Party) string {
	name := ""
	if p.Owner != p.ID || p.Lease.Host == "" {
		name = printable(p.Owner)
	}
	if p.Lease.Label != "" {
		name += " " + printable(p.Lease.Label)
	}
	if p.Lease.Host != "" {
		if name != "" {
			name += " on"
		}
		name += " " + printable(p.Lease.Host)
	}
	if p.Lease.PID != 0 {
		name += " pid " + strconv.Itoa(p.Lease.PID)
	}
	switch p.Lease.State {
	case "dead", "missing":
		name += " (" + p.Lease.State + ")"
	case "stale":
		name += " (looks dead)"
	}
	if name[0] == ' ' {
		name = name[1:]
	}
	return name
}
