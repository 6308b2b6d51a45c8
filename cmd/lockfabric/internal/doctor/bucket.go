package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

// farBehind is a lag that a replica needs a long time to catch up.
const farBehind = 10_000

// firstDay is the smallest possible revision: they start at the clock's microseconds, and the project began later.
var firstDay = uint64(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro())

func (e *exam) buckets(ctx context.Context) {
	e.leases = e.bucket(ctx, kv.LeasesBucket(e.Fabric))
	shards := 1
	if readable(e.leases) {
		shards = e.leases.Shards
		e.report.Fabric.Shards = shards
		if shards > 1 {
			e.report.ok("bucket", e.Fabric, "its locks are divided over %d shards", shards)
		}
	}
	for _, name := range kv.LocksBuckets(e.Fabric, shards) {
		e.all = append(e.all, e.bucket(ctx, name))
	}
	e.room()
	for _, e.locks = range e.all {
		e.pair()
	}
}

// pair compares a bucket of locks with the bucket of leases.
func (e *exam) pair() {
	if e.locks == nil || e.leases == nil {
		return
	}
	if readable(e.locks) && readable(e.leases) && e.locks.Memory != e.leases.Memory {
		where := map[bool]string{false: "in files", true: "in memory"}
		e.report.add(Problem, "storage", e.locks.Bucket,
			fmt.Sprintf("it is kept %s and the leases bucket %s: no program opens such a fabric", where[e.locks.Memory], where[e.leases.Memory]),
			"end all programs that use this fabric, delete both buckets, and start them: the first one creates both")
	}
	if e.locks.Exists == e.leases.Exists {
		return
	}
	if e.leases.Exists {
		e.report.add(Warning, "bucket", e.locks.Bucket, "it is gone, and the fabric's other bucket is there: all holds are void",
			"nothing, if it was deleted on purpose: the next program creates it, and grants nothing until the holders of before know")
	} else {
		e.report.add(Warning, "bucket", e.leases.Bucket, "it is gone, and the fabric's other bucket is there: all leases are void",
			"end all programs that use this fabric, delete the locks bucket too, and start them: the first one creates both")
	}
}

// bucket examines one bucket. It returns nil if nothing is known about it.
func (e *exam) bucket(ctx context.Context, name string) *jskv.BucketState {
	r := e.report
	s, err := ask(ctx, e, e.rights.lacks("$JS.API.STREAM.INFO.KV_"+name), func(ctx context.Context) (jskv.BucketState, error) { return e.kv.Bucket(ctx, name) })
	switch {
	case notAllowed(err):
		r.add(Unknown, "bucket", name, "this user may not ask for its state", grantIt)
		return nil
	case err != nil:
		r.add(Problem, "bucket", name, "no leader answers for it: "+err.Error(), "see that most servers of the cluster run and reach each other, then look at 'nats stream info KV_"+name+"'")
		return nil
	}
	if !s.Exists {
		r.ok("bucket", name, "it does not exist yet: the first program that uses the fabric creates it, if its user may create streams")
		return &s
	}
	b := Bucket{Name: name, Storage: "file", Replicas: s.Replicas, Leader: s.Leader, FirstSeq: s.FirstSeq, LastSeq: s.LastSeq}
	if s.Memory {
		b.Storage = "memory"
	}
	r.Fabric.Buckets = append(r.Fabric.Buckets, b)
	switch {
	case s.Newer != nil:
		r.add(Problem, "bucket", name, s.Newer.Error(), "upgrade this program and all others that use the fabric")
		return &s
	case s.Foreign():
		r.add(Problem, "bucket", name, "it was not made by lockfabric: "+s.Faults[0].Field+" is "+s.Faults[0].Value, s.Faults[0].Remedy)
		return &s
	}
	r.ok("bucket", name, "it exists, schema %d", s.Schema)
	for _, f := range s.Faults {
		r.add(Problem, "configuration", name, fmt.Sprintf("%s is %s, must be %s", f.Field, f.Value, f.Want), f.Remedy)
	}
	if len(s.Faults) == 0 {
		r.ok("configuration", name, "as safe locking needs it")
	}
	if s.Memory {
		r.add(Warning, "storage", name, "it is kept in memory: locks end with the servers, and programs must say WithMemoryStorage",
			"if that is not wanted, delete both buckets while nobody holds a lock, and start programs without that option")
	} else {
		r.ok("storage", name, "kept in files")
	}
	e.replicas(&s)
	e.clock(&s)
	e.consumers(&s)
	if s.Bytes.Limit > 0 {
		e.limits([]jskv.Usage{{Resource: "bytes of " + name, Used: s.Bytes.Used, Limit: s.Bytes.Limit}})
	}
	return &s
}

// clockOff is the allowed difference of the clocks. A smaller one does not mislead a reader of ages.
const clockOff = 5 * time.Second

// clock compares this host's clock with that of the bucket's server. Locks are safe whatever the result is.
func (e *exam) clock(s *jskv.BucketState) {
	off, which := s.Clock, "ahead of"
	if off < 0 {
		off, which = -off, "behind"
	}
	text := fmt.Sprintf("the server's clock is %v %s this host's, give or take %v", off.Round(time.Millisecond), which, s.ClockError.Round(time.Millisecond))
	if off-s.ClockError <= clockOff {
		e.report.ok("clock", s.Bucket, "%s", text)
		return
	}
	e.report.add(Warning, "clock", s.Bucket, text+": locks do not depend on it, but ages that are shown may be wrong, and so may what is said here of holders that have ended",
		"set both clocks, with NTP for example")
}

// fewConsumers is a limit that a few processes can reach: each needs up to 18 consumers of a bucket.
const fewConsumers = 1000

// consumers checks the bucket's own limit of consumers.
func (e *exam) consumers(s *jskv.BucketState) {
	u := s.Consumers
	if u.Limit <= 0 || u.Limit >= fewConsumers && float64(u.Used) < nearlyFull*float64(u.Limit) {
		return
	}
	detail := fmt.Sprintf("%d of %d consumers in use: beyond that nobody opens the fabric, and waiters are told late", u.Used, u.Limit)
	remedy := "raise the bucket's limit: nats stream edit KV_" + s.Bucket + " --max-consumers=-1"
	status := Warning
	if float64(u.Used) >= full*float64(u.Limit) {
		status = Problem
	}
	e.report.add(status, "limits", s.Bucket, detail, remedy)
}

func (e *exam) replicas(s *jskv.BucketState) {
	r, name := e.report, s.Bucket
	clustered := s.Clustered || r.Cluster.Name != ""
	raise := fmt.Sprintf("nats stream edit KV_%s --replicas=3", name)
	switch {
	case clustered && s.Replicas == 1:
		r.add(Warning, "replicas", name, "1 replica on a cluster: when its server is down nothing is granted, when its disk is lost all holds are", raise)
	case clustered && s.Replicas%2 == 0:
		r.add(Warning, "replicas", name, fmt.Sprintf("%d replicas bear no more failures than %d do", s.Replicas, s.Replicas-1), raise)
	default:
		r.ok("replicas", name, "%d", s.Replicas)
	}
	if !s.Clustered || s.Replicas == 1 {
		return
	}
	if s.Leader == "" {
		r.add(Problem, "peers", name, "it has no leader: nothing is granted", "see that most of its servers run and reach each other")
		return
	}
	current, before := 1, len(r.Findings) // the leader is current
	for _, p := range s.Peers {
		switch {
		case p.Offline:
			r.add(Problem, "peers", name, fmt.Sprintf("the replica on %s is offline", p.Name), "start that server, or find out why the others don't reach it")
			continue
		case !p.Current:
			r.add(Problem, "peers", name, fmt.Sprintf("the replica on %s is %d writes behind", p.Name, p.Lag), "wait until it has caught up; if it does not, look at that server's log and disk")
			continue
		case p.Lag > farBehind:
			r.add(Warning, "peers", name, fmt.Sprintf("the replica on %s is %d writes behind", p.Name, p.Lag), "see whether that server's disk or network is slow")
		}
		current++
	}
	if missing := s.Replicas - 1 - len(s.Peers); missing > 0 {
		r.add(Problem, "peers", name, fmt.Sprintf("%d of %d replicas have no server", missing, s.Replicas), "add servers to the cluster, or look at 'nats stream info KV_"+name+"'")
	}
	if len(r.Findings) == before {
		r.ok("peers", name, "%d of %d replicas are current, leader is %s", current, s.Replicas, s.Leader)
	}
}

// readable reports whether the content of a bucket can be interpreted.
func readable(s *jskv.BucketState) bool {
	return s != nil && s.Exists && s.Newer == nil && !s.Foreign()
}

// incarnation compares the locks bucket with the note about it.
func (e *exam) incarnation(ctx context.Context) {
	if !readable(e.leases) {
		e.void = e.leases == nil
		return
	}
	r, name := e.report, kv.LocksBuckets(e.Fabric, len(e.all))[e.shard]
	note, err := ask(ctx, e, e.mayNotRead(e.leases.Bucket), func(ctx context.Context) (jskv.Note, error) { return e.kv.Note(ctx, e.shard) })
	switch {
	case err == nil:
	case errors.Is(err, kv.ErrUnsafeConfig), errors.Is(err, kv.ErrNewerSchema):
		e.void = true
		r.add(Problem, "incarnation", name, "the fabric's note can't be read: "+err.Error(),
			"end all programs that use this fabric, then 'nats kv purge "+e.Fabric+"-leases "+kv.MetaKey+"'; upgrade, if it is of a newer version")
		return
	default:
		e.void = true
		why, remedy := reason(err)
		r.add(Unknown, "incarnation", name, "the fabric's note was not read: "+why, remedy)
		r.add(Unknown, "sequence", name, "the fabric's note was not read: "+why, remedy)
		return
	}
	if !readable(e.locks) {
		return
	}
	switch {
	case !note.Exists:
		r.ok("incarnation", name, "not noted yet: the next program does it")
	case note.Incarnation != e.locks.Incarnation:
		e.void = true
		r.add(Warning, "incarnation", name, fmt.Sprintf("it was created again since it was noted: who opens the fabric grants nothing for %v, until all holders of before know that their holds are void", note.Quarantine),
			"nothing: the first program that runs for so long confirms it")
	default:
		r.ok("incarnation", name, "it is the one that was noted")
	}
	e.sequence(note)
}

func (e *exam) sequence(note jskv.Note) {
	r, name := e.report, e.locks.Bucket
	switch {
	case e.locks.LastSeq < note.HighWater:
		e.void = true
		next := max(uint64(time.Now().UnixMicro()), note.HighWater) + 1
		r.add(Problem, "sequence", name,
			fmt.Sprintf("its last revision is %d, and programs have seen %d: it was restored from a backup. All holds are void, and fencing tokens would repeat", e.locks.LastSeq, note.HighWater),
			fmt.Sprintf("end all programs that use this fabric, then move the sequence up, which also removes the void holds: nats stream purge KV_%s --seq=%d --force", name, next))
	case e.locks.LastSeq+1 < firstDay:
		r.add(Warning, "sequence", name,
			fmt.Sprintf("its revisions stand at %d and did not begin at the clock's microseconds: made by hand, or restored. Tokens of a bucket that it replaced may be larger", e.locks.LastSeq),
			fmt.Sprintf("end all programs that use this fabric, then: nats stream purge KV_%s --seq=%d --force", name, uint64(time.Now().UnixMicro())))
	default:
		r.ok("sequence", name, "last revision %d, above all that were noted", e.locks.LastSeq)
	}
}

// some returns the first few names of a list.
func some(list []string) string {
	const most = 3
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}
