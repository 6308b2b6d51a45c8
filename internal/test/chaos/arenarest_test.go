package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/cluster"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
	"github.com/lockfabric/lockfabric/primitives"
)

// leadership is a leadership as a hold for the oracle.
type leadership struct{ *primitives.Leadership }

func (leadership) Mode() fabric.Mode { return fabric.Exclusive }

func (p *player) lead() {
	ctx, soon, cancel := p.bounded()
	defer cancel()
	before := p.leaders.Mark("leaders")
	term, err := primitives.NewElection(p.m, "leaders").Campaign(ctx, fmt.Append(nil, "player ", p.id))
	if err != nil {
		p.failed("campaign", soon, err)
		return
	}
	p.did("terms")
	l := leadership{term}
	p.leaders.Granted(l, before)
	if p.rand.IntN(2) == 0 {
		p.failed("proclamation", soon, term.Proclaim(ctx, fmt.Append(nil, "term ", term.Term())))
	}
	p.dawdle()
	p.leaders.Ending(l)
	p.failed("resignation", false, term.Resign(context.Background()))
}

// observe follows the leaders for a while.
func (p *player) observe() {
	ctx, cancel := context.WithTimeout(p.ctx, time.Duration(1+p.rand.IntN(5))*time.Second)
	defer cancel()
	var newest uint64
	for l, err := range primitives.NewElection(p.m, "leaders").Observe(ctx) {
		said := string(l.Value)
		switch {
		case err != nil:
			p.failed("observation", true, err)
		case l.Term == 0:
		case l.Term < newest:
			p.violated("term %d was observed after %d", l.Term, newest)
		case !strings.HasPrefix(said, "player ") && said != fmt.Sprint("term ", l.Term):
			p.violated("%q was observed in term %d", said, l.Term)
		default:
			newest = l.Term
			p.did("observed")
		}
	}
}

// turnstile is a place for one item, between a producer and a consumer that wait for each other's signals. Each signal
// is needed: if one gets lost, both wait for ever.
type turnstile struct {
	mu   sync.Mutex
	full bool
}

func turnstileKey(i int) string { return fmt.Sprint("turnstile/", i) }

// turn changes the turnstile while l is valid, and reports whether it has.
func (ts *turnstile) turn(l *primitives.Lock, full bool) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if l.Err() != nil || ts.full == full {
		return false
	}
	ts.full = full
	return true
}

func (ts *turnstile) is(full bool) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.full == full
}

func (p *player) produce() { p.pass(p.id, true) }
func (p *player) consume() { p.pass(p.id, false) }

// gate is a turnstile as one player uses it.
type gate struct {
	*player
	mu *primitives.Mutex
	ts *turnstile
	n  int
}

// at returns the gate of a player that uses this manager.
func (p *player) at(n, manager int) *gate {
	return &gate{p, primitives.NewMutex(p.managers[manager], turnstileKey(n)), &p.turnstile[n], n}
}

func (g *gate) cond(full bool) *primitives.Cond {
	return primitives.NewCond(g.mu, map[bool]string{true: "full", false: "empty"}[full])
}

func (g *gate) lock() *primitives.Lock {
	ctx, cancel := context.WithTimeout(g.ctx, arenaPatience)
	defer cancel()
	l, err := g.mu.Lock(ctx)
	g.failed("lock", false, err)
	return l
}

func (g *gate) unlock(l *primitives.Lock) {
	if l != nil {
		g.failed("unlock", false, l.Release(context.Background()))
	}
}

// signal wakes one waiter, and unlocks. If the outcome is unknown it signals again: an additional signal is allowed.
func (g *gate) signal(l *primitives.Lock, full bool) {
	for ; l != nil; l = g.lock() {
		err := g.cond(full).Signal(g.ctx, l)
		g.failed("signal", false, err)
		g.unlock(l)
		if err == nil {
			return
		}
	}
}

// pass waits until the turnstile is in the right state, turns it, and signals the other player.
func (p *player) pass(n int, full bool) {
	g := p.at(n, (n+map[bool]int{true: 0, false: 1}[full])%3)
	l := g.lock()
	for l != nil && g.ts.is(full) {
		l, _ = p.await(g.cond(!full), l, true)
	}
	switch {
	case l == nil:
	case g.ts.turn(l, full):
		g.signal(l, full)
		p.did(fmt.Sprint("turns/", n))
	default:
		g.unlock(l)
	}
}

// disturb waits at the same condition as the consumer and gives up soon. A signal that was meant for it then has to reach the
// consumer. If it gets a signal, it signals again. On a cluster, its server is the one that is cut off.
func (p *player) disturb() {
	g := p.at(p.id, 3)
	l := g.lock()
	if l == nil {
		return
	}
	l, signalled := p.await(g.cond(true), l, false)
	if signalled {
		p.did("handed on")
		g.signal(l, true)
		return
	}
	g.unlock(l)
}

// die waits at the same condition as the consumer until its connection ends for good. When its entry is evicted, a signal that it got has to reach
// the consumer.
func (p *player) die(url string) {
	nc, err := nats.Connect(url, connectTimeout)
	if err != nil {
		p.violated("connect: %v", err)
		return
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(context.Background(), arenaPatience)
	defer cancel()
	m, err := fabric.New(ctx, nc, fabric.WithTTL(time.Second))
	if err != nil {
		p.violated("open: %v", err)
		return
	}
	mu := primitives.NewMutex(m, turnstileKey(p.id))
	woken := make(chan bool, 1)
	go func() {
		l, err := mu.Lock(ctx)
		if err == nil {
			_, err = primitives.NewCond(mu, "full").Wait(ctx, l)
		}
		woken <- err == nil
	}()
	time.Sleep(time.Duration(p.rand.IntN(100_000)) * time.Microsecond)
	nc.Close()
	_ = m.Close()
	if <-woken { // the signal has reached it and was lost with it
		g := p.at(p.id, 3)
		g.signal(g.lock(), true)
	}
	p.did("died")
	for got := (fabric.Collected{Leases: 1}); got.Leases > 0 && ctx.Err() == nil && p.ctx.Err() != nil; time.Sleep(100 * time.Millisecond) {
		if got, err = p.managers[3].Collect(ctx, turnstileKey(p.id)); err != nil {
			p.violated("collect: %v", err)
			return
		}
	}
}

// await waits for a signal. It returns the lock if it is held afterwards.
func (p *player) await(c *primitives.Cond, l *primitives.Lock, patient bool) (_ *primitives.Lock, signalled bool) {
	d := arenaPatience
	if !patient {
		d = time.Duration(p.rand.IntN(100_000)) * time.Microsecond
	}
	ctx, cancel := context.WithTimeout(p.ctx, d)
	defer cancel()
	next, err := c.Wait(ctx, l)
	p.failed("wait for a signal", !patient, err)
	if err != nil && patient {
		if next != nil {
			p.failed("unlock", false, next.Release(context.Background()))
		}
		return nil, false
	}
	return next, err == nil
}

// Servers resign, are cut off and are killed while all primitives are in use. The leases are so short that some get lost.
func TestSoakPrimitivesOnACluster(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	first := newManagers(t, 1, func(int) string { return c.URL() }, connOptions()) // makes the buckets
	old := leader(t, c, locksStream)
	if err := first[0].Close(); err != nil {
		t.Fatal(err)
	}
	urls := func(i int) string { // the last one reaches only the leader that is cut off, the others only its followers
		if i == 3 {
			return c.Node(old).ClientURL()
		}
		return c.Node((old+1)%c.Size()).ClientURL() + "," + c.Node((old+2)%c.Size()).ClientURL()
	}
	a := enter(t, newManagers(t, 4, urls, connOptions(), fabric.WithTTL(3*time.Second)),
		fabric.ErrLost, fabric.ErrUnconfirmed, fabric.ErrUncertain)
	everything := []string{"permits", "meetings", "terms", "observed", "turns/0", "turns/1"}
	for n, end := 0, time.Now().Add(lasts(0)); n < 1 || time.Now().Before(end); n++ {
		a.grow(everything...)
		leader(t, c, locksStream)
		if err := c.StepDown(testContext(t), locksStream); err != nil && !errors.Is(err, cluster.ErrNoLeader) {
			t.Log(err)
		}
		a.grow(everything...)
		i, kill := old, n%2 == 0
		if kill {
			i = leader(t, c, locksStream)
			c.KillNode(i)
		} else {
			c.Isolate(i)
		}
		leader(t, c, locksStream)
		leader(t, c, leasesStream)
		a.grow("permits", "terms", "turns/0", "turns/1")
		if kill {
			if err := c.RestartNode(testContext(t), i); err != nil {
				t.Fatal(err)
			}
		} else {
			c.Heal(i)
		}
		if err := c.WaitReady(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	a.grow(append(everything, "broken")...)
	a.finish()
}

// Requests and answers get lost, come late and twice, and connections break while all primitives are in use.
func TestSoakPrimitivesMessagesLost(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	proxy := faultproxy.New(t, srv.ClientURL())
	a := enter(t, newManagers(t, 4, func(int) string { return proxy.URL() }, connOptions()), fabric.ErrUnconfirmed, fabric.ErrUncertain)
	if *soak > 0 { // each death costs a second
		dies := &player{arena: a, rand: rand.New(rand.NewPCG(1, 1))}
		a.all.Go(func() {
			for a.ctx.Err() == nil {
				dies.die(srv.ClientURL())
			}
		})
	}
	rules := []*faultproxy.Rule{
		proxy.DropRepliesTo(share(50)), proxy.DropRequests(share(100)), proxy.DuplicateRequests(share(50)), proxy.DuplicateReplies(share(50)),
	}
	none := func(r *faultproxy.Rule) bool { return r.Count() == 0 }
	ctx := testContext(t)
	for end := time.Now().Add(lasts(2 * time.Second)); time.Now().Before(end) || slices.ContainsFunc(rules, none) && ctx.Err() == nil; {
		held := proxy.HoldRequests(share(200))
		time.Sleep(time.Second + rand.N(time.Second))
		proxy.Cut()
		proxy.Heal()
		if err := held.Release(); err != nil {
			t.Error(err)
		}
	}
	for _, r := range rules {
		r.Remove()
	}
	a.grow("permits", "meetings", "broken", "terms", "observed", "turns/0", "turns/1")
	a.finish()
}
