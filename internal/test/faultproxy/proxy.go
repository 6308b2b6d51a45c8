package faultproxy

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

const dialTimeout = 5 * time.Second

// Proxy forwards clients to one server. All methods are safe for concurrent use.
type Proxy struct {
	target   string
	listener net.Listener
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	wg       sync.WaitGroup // accept loop and connections
	rules    ruleSet

	// sending is held for reading while bytes are written, so that nothing moves
	// any more once Stall has returned.
	sending sync.RWMutex
	gate    chan struct{} // closed while not stalled; guarded by sending

	mu           sync.Mutex
	base, jitter time.Duration
	isCut        bool
	conns        map[*conn]chan struct{} // closed when the connection has ended
}

// New starts a proxy for the server at target, "nats://host:port" or
// "host:port", and closes it at the end of the test.
func New(t testing.TB, target string) *Proxy {
	t.Helper()
	p, err := Start(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// Start does the same without a test. The caller closes the proxy.
func Start(target string) (*Proxy, error) {
	target = strings.TrimPrefix(target, "nats://")
	if _, _, err := net.SplitHostPort(target); err != nil {
		return nil, fmt.Errorf("faultproxy: target %q: %w", target, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("faultproxy: %w", err)
	}
	p := &Proxy{target: target, listener: l, gate: make(chan struct{}), conns: make(map[*conn]chan struct{})}
	close(p.gate)
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Go(p.accept)
	return p, nil
}

// URL returns the address to give to clients.
func (p *Proxy) URL() string { return "nats://" + p.listener.Addr().String() }

// Conns returns the number of clients that are connected.
func (p *Proxy) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// Close disconnects all clients and waits for the proxy's goroutines. Held messages
// are dropped.
func (p *Proxy) Close() {
	p.cancel()
	_ = p.listener.Close()
	p.Cut()
	p.wg.Wait()
}

// SetDelay makes every message take base plus a random part of jitter, in each
// direction; order is kept. Messages under way keep their delay.
func (p *Proxy) SetDelay(base, jitter time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.base, p.jitter = base, jitter
}

func (p *Proxy) delay() (base, jitter time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.base, p.jitter
}

// Cut resets all connections and refuses new ones until Heal. Bytes under way
// are lost: once Cut has returned, nothing more reaches the other side.
// Messages that a rule holds stay held.
func (p *Proxy) Cut() {
	p.mu.Lock()
	p.isCut = true
	var ended []chan struct{}
	for c, done := range p.conns {
		c.abort()
		ended = append(ended, done)
	}
	p.mu.Unlock()
	for _, done := range ended {
		<-done
	}
}

// Heal ends a Cut.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.isCut = p.ctx.Err() != nil
}

// Stall holds all bytes in both directions while connections stay open, until
// Stall(false). New connections are accepted and stall too.
func (p *Proxy) Stall(on bool) {
	p.sending.Lock()
	defer p.sending.Unlock()
	select {
	case <-p.gate:
		if on {
			p.gate = make(chan struct{})
		}
	default:
		if !on {
			close(p.gate)
		}
	}
}

// send writes to one side as soon as the proxy isn't stalled.
func (p *Proxy) send(ctx context.Context, dst net.Conn, data []byte) error {
	for {
		p.sending.RLock()
		gate := p.gate
		select {
		case <-gate:
			_, err := dst.Write(data)
			p.sending.RUnlock()
			return err
		default:
		}
		p.sending.RUnlock()
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// DropRequests loses messages from clients.
func (p *Proxy) DropRequests(match Match) *Rule { return p.rules.add(&p.rules.requests, drop, match) }

// DuplicateRequests delivers messages from clients twice.
func (p *Proxy) DuplicateRequests(match Match) *Rule {
	return p.rules.add(&p.rules.requests, duplicate, match)
}

// HoldRequests keeps messages from clients back until Rule.Release.
func (p *Proxy) HoldRequests(match Match) *Rule { return p.rules.add(&p.rules.requests, hold, match) }

// DropRepliesTo lets matching messages from clients pass and loses every answer
// to them: the server has carried out the request, and the client doesn't learn of it.
func (p *Proxy) DropRepliesTo(match Match) *Rule {
	return p.rules.add(&p.rules.requests, dropReplies, match)
}

// DropReplies loses messages from the server.
func (p *Proxy) DropReplies(match Match) *Rule { return p.rules.add(&p.rules.replies, drop, match) }

// DuplicateReplies delivers messages from the server twice.
func (p *Proxy) DuplicateReplies(match Match) *Rule {
	return p.rules.add(&p.rules.replies, duplicate, match)
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			if p.ctx.Err() != nil {
				return
			}
			continue
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	d := net.Dialer{Timeout: dialTimeout}
	server, err := d.DialContext(p.ctx, "tcp", p.target)
	if err != nil {
		reset(client)
		return
	}
	ctx, cancel := context.WithCancel(p.ctx)
	c := newConn(p, client, server, cancel)
	defer c.abort()
	ended := make(chan struct{})
	p.mu.Lock()
	if p.isCut || p.ctx.Err() != nil {
		p.mu.Unlock()
		return
	}
	p.conns[c] = ended
	p.mu.Unlock()
	c.run(ctx)
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	close(ended)
}
