package cluster

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// linkDialTimeout bounds the dial to the other end of a link, on loopback.
const linkDialTimeout = 2 * time.Second

// Link carries the route connections from one node to another through a
// listener of its own, so that they can be cut. Each ordered pair of nodes that
// dial has one: a forwarder per node would not know who is calling.
type Link struct {
	listener net.Listener
	ctx      context.Context // ends with Close; bounds dials
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu     sync.Mutex
	target string // route address of the callee, empty while it is down
	isCut  bool
	closed bool
	conns  map[net.Conn]struct{}
	pumps  sync.WaitGroup // one per connection pair; Add under mu only
}

// NewLink returns a link without a target.
func NewLink() (*Link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("cluster: link between nodes: %w", err)
	}
	k := &Link{listener: l, conns: make(map[net.Conn]struct{})}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.wg.Go(k.accept)
	return k, nil
}

// Addr returns the address on which the link accepts connections.
func (k *Link) Addr() string { return k.listener.Addr().String() }

// SetTarget sets the address of the other end. With an empty one the link refuses connections.
func (k *Link) SetTarget(addr string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.target = addr
}

// cut closes the open connections and refuses new ones until heal. When it returns,
// no byte is under way any more, except those in the socket of the other end.
func (k *Link) cut() {
	k.mu.Lock()
	k.isCut = true
	k.abortLocked()
	k.mu.Unlock()
	k.pumps.Wait()
}

func (k *Link) heal() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.isCut = false
}

// Close ends the link for good and waits for its goroutines.
func (k *Link) Close() {
	k.cancel()
	_ = k.listener.Close()
	k.mu.Lock()
	k.closed = true
	k.abortLocked()
	k.mu.Unlock()
	k.pumps.Wait()
	k.wg.Wait()
}

func (k *Link) abortLocked() {
	for c := range k.conns {
		abort(c)
	}
	clear(k.conns)
}

// abort resets the connection, as a lost network would sooner or later: bytes that
// were written but not sent are dropped, not flushed.
func abort(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

func (k *Link) accept() {
	for {
		caller, err := k.listener.Accept()
		if err != nil {
			if k.ctx.Err() != nil {
				return
			}
			// Out of descriptors, or a caller that gave up: try again, slowly.
			select {
			case <-k.ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
				continue
			}
		}
		k.wg.Go(func() { k.connect(caller) })
	}
}

// connect dials the other end and starts the pumps. It checks the state twice, since
// the link may be cut, or get another target, during the dial.
func (k *Link) connect(caller net.Conn) {
	k.mu.Lock()
	target, open := k.target, !k.isCut && !k.closed
	k.mu.Unlock()
	if !open || target == "" {
		abort(caller)
		return
	}
	d := net.Dialer{Timeout: linkDialTimeout}
	callee, err := d.DialContext(k.ctx, "tcp", target)
	if err != nil {
		abort(caller)
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.isCut || k.closed || k.target != target {
		abort(caller)
		abort(callee)
		return
	}
	k.conns[caller] = struct{}{}
	k.conns[callee] = struct{}{}
	k.pumps.Go(func() { k.pump(caller, callee) })
	k.pumps.Go(func() { k.pump(callee, caller) })
}

// pump copies one direction. When it ends, both directions end.
func (k *Link) pump(dst, src net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_ = src.Close()
	_ = dst.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.conns, src)
	delete(k.conns, dst)
}
