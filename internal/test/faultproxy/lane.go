package faultproxy

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// lane is one direction of a connection. Frames wait in it until they are due.
// They leave in the order in which they came, so a frame that is due early waits for the frames
// before it.
type lane struct {
	proxy *Proxy
	dst   net.Conn

	mu     sync.Mutex
	items  []item
	ended  bool // no more items will come
	wakeup chan struct{}
}

type item struct {
	due time.Time
	raw []byte
}

func newLane(p *Proxy, dst net.Conn) *lane {
	return &lane{proxy: p, dst: dst, wakeup: make(chan struct{}, 1)}
}

// push appends a frame; it reports false when the lane has ended.
func (l *lane) push(f *frame) bool {
	base, jitter := l.proxy.delay()
	due := time.Now().Add(base)
	if jitter > 0 {
		due = due.Add(rand.N(jitter))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.items = append(l.items, item{due: due, raw: f.raw})
	l.wake()
	return true
}

// end lets the writer finish once the lane is empty.
func (l *lane) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.wake()
}

func (l *lane) wake() {
	select {
	case l.wakeup <- struct{}{}:
	default:
	}
}

// next takes the oldest frame. ok is false once no more frames can come.
func (l *lane) next(ctx context.Context) (it item, ok bool) {
	for {
		l.mu.Lock()
		if len(l.items) > 0 {
			it, l.items = l.items[0], l.items[1:]
			l.mu.Unlock()
			return it, true
		}
		ended := l.ended
		l.mu.Unlock()
		if ended {
			return item{}, false
		}
		select {
		case <-l.wakeup:
		case <-ctx.Done():
			return item{}, false
		}
	}
}

// write delivers until the lane has ended and is empty, the destination fails,
// or ctx ends.
func (l *lane) write(ctx context.Context) {
	defer l.end()
	for {
		it, ok := l.next(ctx)
		if !ok {
			return
		}
		if d := time.Until(it.due); d > 0 {
			select {
			case <-time.After(d):
			case <-ctx.Done():
				return
			}
		}
		if err := l.proxy.send(ctx, l.dst, it.raw); err != nil {
			return
		}
	}
}
