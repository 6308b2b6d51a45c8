package doctor

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

// userInfo is the subject on which a server reports the user's own permissions.
const userInfo = "$SYS.REQ.USER.INFO"

type rights struct {
	known      bool
	pub, sub   permission
	restricted bool
}

// permission is one direction. Without an allow list, everything is allowed that is not denied.
type permission struct {
	Allow []string `json:"allow"`
	Deny  []string `json:"deny"`
}

// allows reports whether all subjects of a pattern are allowed.
func (p permission) allows(pattern string) bool {
	for _, d := range p.Deny {
		d, _, _ = strings.Cut(d, " ") // removes the queue of a subscription
		if overlap(d, pattern) {
			return false
		}
	}
	for _, a := range p.Allow {
		if covers(a, pattern) {
			return true
		}
	}
	return len(p.Allow) == 0
}

func (r *rights) allow(n fabric.Permission) bool {
	if !r.restricted {
		return true
	}
	if n.Subscribe {
		return r.sub.allows(n.Subject)
	}
	return r.pub.allows(n.Subject)
}

func (r *rights) lacks(pattern string) bool { return r.known && r.restricted && !r.pub.allows(pattern) }

func (e *exam) permissions(ctx context.Context) {
	err := e.step(ctx, stepTimeout, func(ctx context.Context) error {
		reply, err := e.nc.RequestWithContext(ctx, userInfo, nil)
		if err != nil {
			return err
		}
		return e.rights.read(reply.Data)
	})
	if err != nil {
		why := err.Error()
		switch {
		case notAllowed(err):
			why = "this user may not ask"
		case errors.Is(err, nats.ErrNoResponders), errors.Is(err, context.DeadlineExceeded):
			why = "the server does not tell"
		}
		e.report.add(Unknown, "permissions", "", why, fmt.Sprintf("allow the user to publish %q, or see under the other checks what could not be read", userInfo))
		return
	}
	if leases := kv.LeasesBucket(e.Fabric); e.rights.restricted && !e.rights.lacks("$JS.API.STREAM.INFO.KV_"+leases) {
		s, err := ask(ctx, e, false, func(ctx context.Context) (jskv.BucketState, error) { return e.kv.Bucket(ctx, leases) })
		if err == nil && s.Shards > 1 {
			e.mu.Lock()
			e.needs = needsOf(e.nc, e.Fabric, s.Shards)
			e.mu.Unlock()
		}
	}
	missing := 0
	for _, n := range e.needs {
		if e.rights.allow(n) {
			continue
		}
		missing++
		status := Problem
		if n.Helpful {
			status = Warning
		}
		e.report.add(status, "permissions", n.Subject, fmt.Sprintf("not allowed: %s, for %s", permit(n), n.Why), "allow the user to "+permit(n))
	}
	if missing == 0 {
		e.report.ok("permissions", "", "the user may do all that locks need")
	}
}

// read parses the server's answer. For a user without restrictions it contains none.
func (r *rights) read(data []byte) error {
	var answer struct {
		Data *struct {
			Permissions *struct {
				Publish   permission `json:"publish"`
				Subscribe permission `json:"subscribe"`
			} `json:"permissions"`
		} `json:"data"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return fmt.Errorf("the server's answer can't be read: %w", err)
	}
	if answer.Data == nil {
		return errors.New("the server's answer is empty")
	}
	r.known = true
	if p := answer.Data.Permissions; p != nil {
		r.restricted, r.pub, r.sub = true, p.Publish, p.Subscribe
	}
	return nil
}

// covers reports whether wide matches every subject of pattern.
func covers(wide, pattern string) bool {
	w, p := strings.Split(wide, "."), strings.Split(pattern, ".")
	for i, t := range w {
		switch {
		case i >= len(p):
			return false
		case t == ">":
			return true
		case p[i] == ">", t != "*" && t != p[i]:
			return false
		}
	}
	return len(w) == len(p)
}

// overlap reports whether some subject matches both patterns.
func overlap(a, b string) bool {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(x), len(y)) {
		switch {
		case x[i] == ">" || y[i] == ">":
			return true
		case x[i] != y[i] && x[i] != "*" && y[i] != "*":
			return false
		}
	}
	return len(x) == len(y)
}

// needsOf returns the permissions that a program with locks in the fabric needs if it creates no buckets.
func needsOf(nc *nats.Conn, name string, shards int) []fabric.Permission {
	all, _ := fabric.Permissions(name, fabric.RoleClient, cmp.Or(nc.Opts.InboxPrefix, "_INBOX"), shards)
	return all
}

// bearable reports whether a refused permission is optional.
func bearable(needs []fabric.Permission, err error) bool {
	// The client's error contains the server's text with the subject in quotes, and nothing more.
	return slices.ContainsFunc(needs, func(n fabric.Permission) bool {
		begins, _, _ := strings.Cut(n.Subject, "*")
		return n.Helpful && strings.Contains(err.Error(), ` to "`+strings.TrimSuffix(begins, ">"))
	})
}

// permit formats the permission as in the server's configuration.
func permit(p fabric.Permission) string {
	if p.Subscribe {
		return "subscribe " + strconv.Quote(p.Subject)
	}
	return "publish " + strconv.Quote(p.Subject)
}

// ProbePrefix is the start of the name of the probe's lock. The rest is random, so no program waits for it.
const ProbePrefix = "_lockfabric-doctor/"

// probeTime limits each measurement.
const probeTime = 30 * time.Second

// rtt measures the connection, and writes nothing.
func (e *exam) rtt(ctx context.Context) {
	r := e.report
	r.Latency.Probes, r.Latency.TTL = e.Probes, e.TTL
	var took []time.Duration
	err := e.measure(ctx, "rtt", func(ctx context.Context) error {
		start := time.Now()
		err := e.nc.FlushWithContext(ctx)
		took = append(took, time.Since(start))
		return err
	})
	if err != nil {
		r.add(Problem, "rtt", "", "the server stopped answering: "+err.Error(), "check the network between here and the server")
		return
	}
	t := sum(took)
	r.Latency.RTT = t
	text := fmt.Sprintf("round trip %v, p99 %v, max %v", t.Median, t.P99, t.Max)
	if limit := e.TTL / 3; t.P99 > limit {
		r.add(Warning, "rtt", "", fmt.Sprintf("%s: over a third of the TTL of %v, so one lost renewal loses the locks", text, e.TTL),
			fmt.Sprintf("use a TTL of %v or more, or run nearer to the server", roundUp(3*t.P99)))
		return
	}
	r.ok("rtt", "", "%s", text)
}

// writes measures how long it takes to acquire and to release a free lock, with one compare-and-set write each.
func (e *exam) writes(ctx context.Context) {
	r := e.report
	const later = "see the other findings, and run doctor again"
	switch {
	case e.NoProbe:
		r.ok("writes", "", "not measured, as --no-probe says")
		return
	case slices.Contains(e.all, nil) || e.leases == nil || e.void || !e.safe():
		r.add(Unknown, "writes", "", "not measured: the buckets are not in order", later)
		return
	case slices.ContainsFunc(e.all, func(s *jskv.BucketState) bool { return !s.Exists }) || !e.leases.Exists:
		r.add(Unknown, "writes", "", "not measured: doctor creates no buckets", "use the fabric once, for example with 'lockfabric ls', and run doctor again")
		return
	case e.lacksAny(""):
		r.add(Unknown, "writes", "", "not measured: the user may not do all that locks need", grantIt)
		return
	}
	acquire, release, _, err := e.probe(ctx)
	switch {
	case notAllowed(err):
		r.add(Problem, "writes", "", "the user may not write locks: "+err.Error(), grantIt)
		return
	case err != nil:
		r.add(Problem, "writes", "", "a lock could not be acquired and released: "+err.Error(), later)
		return
	}
	r.Latency.Acquire, r.Latency.Release = sum(acquire), sum(release)
	a, l := r.Latency.Acquire, r.Latency.Release
	text := fmt.Sprintf("acquire %v, p99 %v, max %v; release %v, p99 %v, max %v", a.Median, a.P99, a.Max, l.Median, l.P99, l.Max)
	text += e.coalesced(ctx)
	if slow := max(a.P99, l.P99); slow > e.TTL/10 {
		r.add(Warning, "writes", "", fmt.Sprintf("%s: over a tenth of the TTL of %v, so renewals come late when the server is busy", text, e.TTL),
			fmt.Sprintf("use a TTL of %v or more, or a faster disk or network", roundUp(10*slow)))
		return
	}
	r.ok("writes", "", "%s", text)
}

// coalesced measures the coalesced road, if there is a coalescer, and returns a text about it.
func (e *exam) coalesced(ctx context.Context) string {
	if !e.served {
		return ""
	}
	acquire, release, st, err := e.probe(ctx, fabric.WithRoad(fabric.RoadCoalesced), fabric.WithoutVolunteering())
	if err != nil || st.Coalesced == 0 || st.Fallbacks > 0 {
		return "; the coalescer does not answer, and locks do without it"
	}
	for i := range acquire {
		acquire[i] += release[i]
	}
	t := sum(acquire)
	e.report.Latency.Coalesced = t
	return fmt.Sprintf("; both over the coalescer %v, p99 %v, max %v", t.Median, t.P99, t.Max)
}

// safe reports whether fabric.New would accept the buckets.
func (e *exam) safe() bool {
	for _, s := range e.all {
		if s.Exists && e.leases.Exists && s.Memory != e.leases.Memory || s.Newer != nil || len(s.Faults) > 0 {
			return false
		}
	}
	return e.leases.Newer == nil && len(e.leases.Faults) == 0
}

// probe acquires and releases one lock repeatedly. Each acquire replaces the delete marker of the release before.
func (e *exam) probe(ctx context.Context, more ...fabric.Option) (acquire, release []time.Duration, st fabric.Stats, err error) {
	opts := []fabric.Option{fabric.WithFabric(e.Fabric), fabric.WithLabel("lockfabric doctor"), fabric.WithLogger(e.Logger)}
	opts = append(opts, more...)
	if e.locks.Memory {
		opts = append(opts, fabric.WithMemoryStorage())
	}
	var m *fabric.Manager
	err = e.step(ctx, probeTime, func(ctx context.Context) (err error) { // about ten round trips
		m, err = fabric.New(ctx, e.nc, opts...)
		return err
	})
	if err != nil {
		return nil, nil, st, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	for end := time.Now().Add(knownWithin); len(more) > 0 && m.Stats().CoalescerTerm == 0 && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(time.Millisecond)
	}
	key := ProbePrefix + rand.Text()
	err = e.measure(ctx, "writes", func(ctx context.Context) error {
		start := time.Now()
		l, err := m.Acquire(ctx, key)
		if err != nil {
			return err
		}
		held := time.Now()
		err = l.Release(ctx)
		acquire, release = append(acquire, held.Sub(start)), append(release, time.Since(held))
		return err
	})
	return acquire, release, m.Stats(), err
}

// knownWithin is how long to wait until a coalescer is known.
const knownWithin = time.Second

func sum(took []time.Duration) *Times {
	slices.Sort(took)
	n := len(took)
	return &Times{Median: round(took[n/2]), P99: round(took[(n*99+99)/100-1]), Max: round(took[n-1])}
}

func round(d time.Duration) time.Duration { return d.Round(time.Microsecond) }

func roundUp(d time.Duration) time.Duration {
	unit := time.Second
	if d < unit {
		unit = 100 * time.Millisecond
	}
	return (d + unit - 1).Truncate(unit)
}
