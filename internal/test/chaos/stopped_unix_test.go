//go:build unix

package chaos_test

import (
	"encoding/json"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/micro"

	"github.com/lockfabric/lockfabric/fabric"
)

// A holder is stopped past its lease, as by a debugger, a full machine or a long
// pause of its runtime. Its successor gets the lock in time. When the holder wakes, it
// first writes as if nothing had happened, and the
// register refuses the write. Then it finds its lock lost, and its release does not
// affect the present holder.
func TestStoppedHolderCanDoNoHarm(t *testing.T) {
	s := startServer(t)
	m, nc := one(t, s)
	register, err := openRegister(testContext(t), nc, "stopped")
	if err != nil {
		t.Fatal(err)
	}
	within(t, replacedIn, func() time.Duration {
		p := startHolder(t, s.ClientURL(), "stopped", holderTTL)
		p.say("write early")
		if got := p.expect("wrote "); got != "ok" {
			t.Fatalf("write under a valid lock: %s", got)
		}
		granted := acquireLater(t, m, "stopped")

		stopped := time.Now()
		signal(t, p, syscall.SIGSTOP)
		g := awaitGrant(t, granted)
		if _, err := register.Write(testContext(t), g.lock.Token(), []byte("successor")); err != nil {
			t.Fatal(err)
		}
		p.say("write late", "lost", "release")
		signal(t, p, syscall.SIGCONT)

		if got := p.expect("wrote "); got != "stale" {
			t.Errorf("late write of a replaced holder: %s", got)
		}
		if got := p.expect("lost "); got != "lost" {
			t.Errorf("state of the handle after waking: %s", got)
		}
		if got := p.expect("released "); got != "lost" {
			t.Errorf("release after the loss: %s", got)
		}
		if f, err := register.Read(testContext(t)); err != nil || string(f.Value) != "successor" || f.Token != g.lock.Token() {
			t.Errorf("register holds %q under token %d: %v", f.Value, f.Token, err)
		}
		if !g.lock.IsValid(testContext(t)) {
			t.Errorf("the successor's hold after the old holder's release: %v", g.lock.Err())
		}
		info, err := m.Inspect(testContext(t), "stopped")
		if err != nil || len(info.Holders) != 1 || info.Holders[0].ID != g.lock.ID() {
			t.Errorf("holders %+v, %v", info.Holders, err)
		}
		release(t, g.lock)
		p.kill()
		return g.at.Sub(stopped)
	})
}

// A waiter is stopped, is granted the lock while it is stopped, and is found dead. When
// it wakes, it first hears of its grant or of its end. In neither case does it
// hold: it queues again, behind the present holder.
func TestStoppedWaiterIsNotGrantedInItsSleep(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	m, _ := one(t, s)
	grantedInItsSleep(t, m, func(lock string) *process { return launch(t, s.ClientURL(), lock, holderTTL) })
}

// C10: it does not hold by a turn either. The turn comes before the write and waits in the socket until the waiter wakes.
func TestC10_AStoppedWaiterTakesNoTurn(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	url := func(int) string { return s.ClientURL() }
	owner := newManagers(t, 1, url, connOptions(), fabric.WithCoalescer())[0]
	_, nc := one(t, s)
	if _, err := owner.Acquire(testContext(t), "else"); err != nil {
		t.Fatal(err)
	}
	for owner.Stats().Serving == 0 {
		if err := nc.Publish("lf."+fabric.DefaultFabric+".0.hello", nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	m := newManagers(t, 1, url, connOptions(), withTurns...)[0]
	if err := awaitOwner(testContext(t), m); err != nil {
		t.Fatal(err)
	}
	stats := func() (st struct{ Turns, Waiting int }) { // the owner's, if there is one at the moment
		var all micro.Stats
		if reply, err := nc.Request("$SRV.STATS.lockfabric", nil, time.Minute); err == nil && json.Unmarshal(reply.Data, &all) == nil {
			_ = json.Unmarshal(all.Endpoints[0].Data, &st)
		}
		return st
	}
	start := func(lock string) *process {
		p := launch(t, s.ClientURL(), lock, holderTTL, turnsEnv+"=1")
		for end := time.Now().Add(5 * time.Second); stats().Waiting == 0 && time.Now().Before(end); {
			time.Sleep(2 * time.Millisecond)
		}
		return p
	}
	for stats().Turns == 0 { // if the owner answers slowly, clients use the direct road
		grantedInItsSleep(t, m, start)
	}
}

// grantedInItsSleep lets a waiter be granted the lock while it is stopped past its lease.
func grantedInItsSleep(t *testing.T, m *fabric.Manager, start func(lock string) *process) {
	t.Helper()
	first, err := m.Acquire(testContext(t), "asleep")
	if err != nil {
		t.Fatal(err)
	}
	p := start("asleep")
	queued(t, m, "asleep", 1)
	signal(t, p, syscall.SIGSTOP)
	release(t, first)
	g := awaitGrant(t, acquireLater(t, m, "asleep")) // this one is granted when the stopped waiter is found dead
	signal(t, p, syscall.SIGCONT)
	queued(t, m, "asleep", 1)
	select {
	case line := <-p.lines:
		t.Errorf("the woken waiter says %q while another one holds", line)
	default:
	}
	info, err := m.Inspect(testContext(t), "asleep")
	if err != nil || len(info.Holders) != 1 || info.Holders[0].ID != g.lock.ID() {
		t.Errorf("holders %+v, %v", info.Holders, err)
	}
	release(t, g.lock)
	p.expect("granted ")
	p.say("release")
	if got := p.expect("released "); got != "ok" {
		t.Errorf("release: %s", got)
	}
}

// A holder that is stopped for less than its lease keeps its lease and its lock.
func TestShortlyStoppedHolderKeepsTheLock(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	m, _ := one(t, s)
	p := startHolder(t, s.ClientURL(), "paused", fabric.DefaultTTL)
	signal(t, p, syscall.SIGSTOP)
	granted := acquireLater(t, m, "paused")
	signal(t, p, syscall.SIGCONT)
	p.say("write awake", "release")
	if got := p.expect("wrote "); got != "ok" {
		t.Errorf("write after a short pause: %s", got)
	}
	if got := p.expect("released "); got != "ok" {
		t.Errorf("release after a short pause: %s", got)
	}
	release(t, awaitGrant(t, granted).lock)
}

// signal stops or wakes the holder. It waits until a stop has taken effect.
func signal(t *testing.T, p *process, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	if sig != syscall.SIGSTOP {
		return
	}
	var status syscall.WaitStatus
	for {
		pid, err := syscall.Wait4(p.cmd.Process.Pid, &status, syscall.WUNTRACED, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil || pid != p.cmd.Process.Pid || !status.Stopped():
			t.Fatalf("holder was not stopped: %v, %v", status, err)
		default:
			return
		}
	}
}
