package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// revokeTime is how much longer than its TTL a holder may take to release after a request, which takes up to a second.
const revokeTime = time.Second

type leaseSight struct {
	live       map[string]string // processes of live leases: "host:pid"
	stale      map[string]bool   // live, but not renewed for twice its TTL
	unreadable []string
	strange    []string // keys that are not lease ids
}

// gone reports whether a lease has ended, or looks so.
func (s *leaseSight) gone(lease string) bool { return s.live[lease] == "" || s.stale[lease] }

// entries reads all entries of a bucket, and notes their number.
func (e *exam) entries(ctx context.Context, name string, fn func(jskv.Entry)) error {
	n := 0
	err := e.step(ctx, stepTimeout, func(ctx context.Context) error {
		if e.mayNotRead(name) {
			return errMayNot
		}
		b, err := e.kv.Open(ctx, name)
		if err != nil {
			return err
		}
		return b.Entries(ctx, ">", func(entry jskv.Entry) bool {
			n++
			fn(entry)
			return true
		})
	})
	for i := range e.report.Fabric.Buckets {
		if b := &e.report.Fabric.Buckets[i]; b.Name == name && err == nil {
			b.Keys = n
		}
	}
	return err
}

// mayNotRead reports whether it is known that the user has no permission to read a bucket. The server would not answer.
func (e *exam) mayNotRead(name string) bool { return e.lacksAny(".KV_" + name) }

// lacksAny reports whether it is known that the user lacks a required permission whose subject contains a text.
func (e *exam) lacksAny(part string) bool {
	return e.rights.known && slices.ContainsFunc(e.needs, func(n fabric.Permission) bool {
		return strings.Contains(n.Subject, part) && !n.Helpful && !e.rights.allow(n)
	})
}

// readLeases reads the leases. It returns nil if this fails.
func (e *exam) readLeases(ctx context.Context) *leaseSight {
	if !readable(e.leases) {
		return nil
	}
	name := e.leases.Bucket
	s := &leaseSight{live: map[string]string{}, stale: map[string]bool{}}
	now := time.Now()
	err := e.entries(ctx, name, func(entry jskv.Entry) {
		if entry.Key == kv.MetaKey || strings.HasPrefix(entry.Key, lease.AskPrefix) {
			return
		}
		if !lease.ValidID(entry.Key) {
			s.strange = append(s.strange, strconv.Quote(entry.Key))
			return
		}
		info, err := lease.Decode(entry.Key, entry.Value)
		switch {
		case err != nil:
			s.unreadable = append(s.unreadable, entry.Key)
		case !info.Dead:
			s.live[entry.Key] = info.Host + ":" + strconv.Itoa(info.PID)
			s.stale[entry.Key] = now.Sub(entry.Created) > 2*info.TTL
		}
	})
	if err != nil {
		why, remedy := reason(err)
		e.report.add(Unknown, "keys", name, "it was not read: "+why, remedy)
		return nil
	}
	e.keys(name, s.strange)
	return s
}

func (e *exam) keys(bucket string, strange []string) {
	if len(strange) == 0 {
		e.report.ok("keys", bucket, "all keys are this project's")
		return
	}
	e.report.add(Warning, "keys", bucket, fmt.Sprintf("%d key(s) that no program of this project writes: %s", len(strange), some(strange)),
		"find out who writes there; then remove each with 'nats kv purge "+bucket+" KEY'")
}

// lockSight contains what was found in the locks: names of locks.
type lockSight struct {
	records                                 int
	strange, unreadable, newer, other, dead []string
	revoked                                 []string
	coalescer                               *record.Record // the lock of the coalescer
	leases                                  *leaseSight
	now                                     time.Time
}

func (e *exam) readLocks(ctx context.Context, leases *leaseSight) {
	if !readable(e.locks) {
		return
	}
	r, name := e.report, e.locks.Bucket
	s := &lockSight{leases: leases, now: time.Now()}
	if err := e.entries(ctx, name, s.see); err != nil {
		why, remedy := reason(err)
		for _, check := range []string{"keys", "records", "holders", "leases"} {
			r.add(Unknown, check, name, "it was not read: "+why, remedy)
		}
		return
	}
	e.keys(name, s.strange)
	if len(s.unreadable) > 0 {
		r.add(Problem, "records", name, fmt.Sprintf("%d record(s) can't be read, their locks are granted to nobody: %s", len(s.unreadable), some(s.unreadable)),
			"look at each with 'nats kv get', and repair it, or purge it when nobody relies on that lock: its holders are then gone")
	}
	if len(s.newer) > 0 {
		r.add(Problem, "records", name, fmt.Sprintf("%d record(s) were written by a newer version: %s", len(s.newer), some(s.newer)), "upgrade this program and all others that use the fabric")
	}
	if len(s.other) > 0 {
		r.add(Warning, "records", name, fmt.Sprintf("%d record(s) are of kinds that this version does not know: %s", len(s.other), some(s.other)), "upgrade this program, or use other names for locks")
	}
	if len(s.unreadable)+len(s.newer)+len(s.other) == 0 {
		r.ok("records", name, "%d in use, all readable", s.records)
	}
	if len(s.revoked) > 0 {
		r.add(Warning, "holders", name, fmt.Sprintf("holders of %d lock(s) were told to let go and have not: %s", len(s.revoked), some(s.revoked)),
			"'lockfabric inspect NAME' names the process: end it; or 'lockfabric release --force --now NAME', which relies on fencing tokens")
	} else {
		r.ok("holders", name, "nobody is told to let go in vain")
	}
	e.standing(s)
	e.coalescer(s)
}

// coalescer adds a finding about the coalescer.
func (e *exam) coalescer(s *lockSight) {
	const is = "is the coalescer"
	subject := e.Fabric
	if len(e.all) > 1 {
		subject = e.locks.Bucket
	}
	switch {
	case s.coalescer == nil || len(s.coalescer.Holders) == 0:
		e.report.ok("coalescer", subject, "nobody serves as the coalescer; one that stands by begins when programs wait for each other")
		return
	case s.leases == nil:
		e.report.ok("coalescer", subject, "some process "+is)
		return
	}
	owner := &s.coalescer.Holders[0]
	also := len(s.coalescer.Waiters)
	if s.leases.gone(owner.Lease()) {
		e.report.ok("coalescer", subject, "the process that was the coalescer has ended without a release; %d wait to follow, and programs do without meanwhile", also)
		return
	}
	e.served = true
	e.report.ok("coalescer", subject, "%s "+is+", of rank %s, %d wait to follow it", s.leases.live[owner.Lease()], owner.Meta["rank"], also)
}

// deadlocks checks whether long waits can be published, so that deadlocks are detected.
func (e *exam) deadlocks(ctx context.Context) {
	if !slices.ContainsFunc(e.all, func(s *jskv.BucketState) bool { return s != nil && s.Exists }) {
		return // it is created with the others
	}
	const remedy = "see that one program, or 'lockfabric deadlocks', runs as a user who may create streams"
	name := kv.WaitsBucket(e.Fabric)
	s, err := ask(ctx, e, e.rights.lacks("$JS.API.STREAM.INFO.KV_"+name), func(ctx context.Context) (jskv.BucketState, error) { return e.kv.Bucket(ctx, name) })
	switch {
	case notAllowed(err):
		e.report.add(Unknown, "deadlocks", name, "this user may not ask for its state", grantIt)
	case err != nil && !e.rights.known:
		e.report.add(Unknown, "deadlocks", name, "no answer: this user may not ask for its state, or no leader answers for it", grantIt)
	case err != nil:
		e.report.add(Warning, "deadlocks", name, "no leader answers for it, and deadlocks are not seen: "+err.Error(), "look at 'nats stream info KV_"+name+"'")
	case !s.Exists:
		e.report.add(Warning, "deadlocks", name, "it does not exist: deadlocks are not seen before it is made", remedy)
	case e.rights.lacks("$KV." + name + ".>"):
		e.report.add(Warning, "deadlocks", name, "this user may not write to it: deadlocks in which its programs are stay", "allow the user to publish "+"\"$KV."+name+".>\"")
	default:
		e.report.ok("deadlocks", name, "those who wait for long can tell each other what they hold")
	}
}

// standing reports entries whose leases are gone. They do no harm: the next request for such a lock evicts them.
func (e *exam) standing(s *lockSight) {
	r, name := e.report, kv.LeasesBucket(e.Fabric)
	switch {
	case s.leases == nil:
		r.add(Unknown, "leases", name, "the leases were not read, so it is not known whether holders live", "see the other findings on that bucket")
		return
	case len(s.leases.unreadable) > 0:
		r.add(Warning, "leases", name, fmt.Sprintf("%d lease(s) can't be read: %s", len(s.leases.unreadable), some(s.leases.unreadable)),
			"purge each with 'nats kv purge "+name+" ID': its locks go on to others one TTL later")
	}
	if len(s.dead) > 0 {
		r.ok("leases", name, "holders of %d lock(s) that nobody waits for have ended without a release, the next to ask evicts them: %s", len(s.dead), some(s.dead))
		return
	}
	r.ok("leases", name, "%d live", len(s.leases.live))
}

func (s *lockSight) see(entry jskv.Entry) {
	if strings.HasPrefix(entry.Key, kv.CoalescerPrefix) {
		s.coalescer, _ = record.Decode(entry.Value)
		return
	}
	name, err := kv.DecodeKey(entry.Key)
	if err != nil {
		s.strange = append(s.strange, strconv.Quote(entry.Key))
		return
	}
	name = strconv.Quote(name)
	s.records++
	rec, err := record.Decode(entry.Value)
	var schema *record.SchemaError
	switch {
	case errors.As(err, &schema) && schema.Kind != "":
		s.other = append(s.other, name)
		return
	case errors.Is(err, record.ErrNewerSchema):
		s.newer = append(s.newer, name)
		return
	case err != nil:
		s.unreadable = append(s.unreadable, name)
		return
	}
	late := func(h record.Entry) bool { return h.Revoked && s.now.Sub(entry.Created) > h.TTL+revokeTime }
	if slices.ContainsFunc(rec.Holders, late) {
		s.revoked = append(s.revoked, name)
	}
	gone := func(h record.Entry) bool { return s.leases.gone(h.Lease()) }
	if s.leases != nil && len(rec.Waiters) == 0 && slices.ContainsFunc(rec.Holders, gone) {
		s.dead = append(s.dead, name)
	}
}
