//go:build unix

package chaos_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/cluster"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
	"github.com/lockfabric/lockfabric/kv"
)

// owners are the candidates for the coalescer of the fabric.
type owners struct {
	t      *testing.T
	s      *scenario
	url    string
	rand   *rand.Rand
	locks  jetstream.KeyValue
	leases jetstream.KeyValue
	all    map[string]*candidate // by label
	made   int
	did    map[string]int
	c      *cluster.Cluster
}

// candidate is a candidate for the coalescer: a process, or a manager of this process.
type candidate struct {
	p     *process
	m     *fabric.Manager
	nc    *nats.Conn
	proxy *faultproxy.Proxy
	until time.Time // it is stopped until then
}

func appoint(t *testing.T, s *scenario, url string) *owners {
	t.Helper()
	nc, err := nats.Connect(url, connOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	o := &owners{t: t, s: s, url: url, rand: rand.New(rand.NewPCG(s.w.Seed, 1)), all: map[string]*candidate{}, did: map[string]int{}}
	if o.locks, err = js.KeyValue(testContext(t), fabric.DefaultFabric+"-locks"); err != nil {
		t.Fatal(err)
	}
	if o.leases, err = js.KeyValue(testContext(t), fabric.DefaultFabric+"-leases"); err != nil {
		t.Fatal(err)
	}
	o.add(true)
	return o
}

// add starts one more candidate.
func (o *owners) add(process bool) {
	o.t.Helper()
	o.made++
	label := fmt.Sprintf("candidate-%d", o.made)
	x := &candidate{}
	o.all[label] = x
	if process {
		x.p = launchSelf(o.t, fmt.Sprintf("%s=%s %s", coalescerEnv, o.url, label))
		x.p.expect("ready")
		return
	}
	x.proxy = faultproxy.New(o.t, o.url)
	var err error
	if x.nc, err = nats.Connect(x.proxy.URL(), connOptions()...); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(x.nc.Close)
	if x.m, err = fabric.New(testContext(o.t), x.nc, fabric.WithCoalescer(), fabric.WithLabel(label)); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { _ = x.m.Close() })
}

// owner returns the label of the candidate that has the lock, "" if there is none.
func (o *owners) owner() string {
	ctx, cancel := context.WithTimeout(testContext(o.t), 5*time.Second)
	defer cancel()
	e, err := o.locks.Get(ctx, kv.CoalescerKey)
	if err != nil {
		return ""
	}
	var rec struct {
		Holders []struct {
			ID string `json:"id"`
		} `json:"holders"`
	}
	if json.Unmarshal(e.Value(), &rec) != nil || len(rec.Holders) == 0 {
		return ""
	}
	lease, _, _ := strings.Cut(rec.Holders[0].ID, ".")
	if e, err = o.leases.Get(ctx, lease); err != nil {
		return ""
	}
	var who struct {
		Label string `json:"label"`
	}
	_ = json.Unmarshal(e.Value(), &who)
	return who.Label
}

// another waits for an owner that is not stopped, and returns it.
func (o *owners) another() (label string, x *candidate) {
	o.t.Helper()
	for ctx := testContext(o.t); ctx.Err() == nil; o.s.work(20 * time.Millisecond) {
		o.wake(false)
		label := o.owner()
		if x := o.all[label]; x != nil && x.until.IsZero() {
			return label, x
		}
	}
	o.t.Fatal("nobody serves")
	return "", nil
}

// disturb disturbs the owner each second, until d has passed.
func (o *owners) disturb(d time.Duration) {
	o.t.Helper()
	verbs := []string{"stop and depose", "depose", "close", "split", "kill", "stop"}
	for end, n := time.Now().Add(d), 0; time.Now().Before(end); n++ {
		for len(o.all) < 3 {
			o.add(o.rand.IntN(2) == 0)
		}
		verb := verbs[n%len(verbs)]
		if n >= len(verbs) {
			verb = verbs[o.rand.IntN(len(verbs))]
		}
		label, x := o.another()
		o.s.note("%s %s", verb, label)
		o.did[verb]++
		o.do(verb, label, x)
		if o.c != nil {
			stepDowns(o.t, o.s, o.c, time.Millisecond)
		}
		o.s.work(time.Until(time.Now().Add(time.Second)))
	}
	for _, x := range o.all {
		if !x.until.IsZero() {
			o.s.work(time.Until(x.until))
		}
	}
	o.wake(true)
}

const pastItsTerm = 4500 * time.Millisecond

func (o *owners) do(verb, label string, x *candidate) {
	o.t.Helper()
	switch verb {
	case "kill":
		delete(o.all, label)
		if x.p != nil {
			x.p.kill()
			return
		}
		x.nc.Close()
	case "close":
		delete(o.all, label)
		if x.p != nil {
			_ = x.p.in.Close()
			return
		}
		if err := x.m.Close(); err != nil {
			o.t.Error(err)
		}
	case "stop", "stop and depose":
		o.stop(x, pastItsTerm)
		if verb != "stop" {
			o.depose()
		}
	case "split": // for less than its term, while another owner serves
		o.stop(x, time.Second)
		o.depose()
	case "depose":
		o.depose()
	}
}

func (o *owners) stop(x *candidate, d time.Duration) {
	o.t.Helper()
	x.until = time.Now().Add(d)
	if x.p != nil {
		signal(o.t, x.p, syscall.SIGSTOP)
	} else {
		x.proxy.Stall(true)
	}
}

// wake lets the stopped candidates go on whose time is over.
func (o *owners) wake(all bool) {
	o.t.Helper()
	for _, x := range o.all {
		if x.until.IsZero() || !all && time.Now().Before(x.until) {
			continue
		}
		x.until = time.Time{}
		if x.p != nil {
			signal(o.t, x.p, syscall.SIGCONT)
		} else {
			x.proxy.Stall(false)
		}
	}
}

// depose removes the lock of the present owner.
func (o *owners) depose() {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(testContext(o.t), 5*time.Second)
	defer cancel()
	if err := o.locks.Purge(ctx, kv.CoalescerKey); err != nil {
		o.s.note("depose: %v", err)
	}
}
