package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
)

// stepTimeout limits one request. A program with a lock would already have a problem.
const stepTimeout = 5 * time.Second

// Options are the options of Run.
type Options struct {
	Fabric  string
	Probes  int  // number of round trips to measure, at least 1
	NoProbe bool // write nothing
	// ProbeTime limits the measurement of round trips, and that of writes; 0 means 30 s.
	ProbeTime time.Duration
	TTL       time.Duration // TTL of the programs' locks
	Strict    bool          // warnings and unknowns count as problems
	// SyncAlways is set if the server is known to sync every write before it acknowledges it. Otherwise the system
	// account is asked.
	SyncAlways bool
	// System is a connection to the system account, or nil. If it was requested and failed, SystemError is the reason.
	System      *nats.Conn
	SystemError error
	// Progress, if not nil, is called with what is being examined.
	Progress func(what string)
	Logger   *slog.Logger
}

type exam struct {
	Options
	nc      *nats.Conn
	kv      *jskv.Examiner
	report  *Report
	needs   []fabric.Permission
	rights  rights
	all     []*jskv.BucketState // of locks, by shard; nil = unknown
	shard   int                 // the shard that is being examined
	locks   *jskv.BucketState   // its bucket
	leases  *jskv.BucketState
	account *jskv.AccountState // nil = unknown
	void    bool               // tokens could repeat, or nothing is granted: no probe
	served  bool               // there is a coalescer

	mu     sync.Mutex
	denied func(error) // ends the present step
}

// Run examines everything and returns the report. It replaces the connection's error handler. Make the connection with
// nats.ReconnectBufSize(-1). The error is kv.ErrInvalidOption, or the context's.
func Run(ctx context.Context, nc *nats.Conn, opts Options) (*Report, error) {
	x, err := jskv.NewExaminer(nc, jskv.Config{Fabric: opts.Fabric})
	if err != nil {
		return nil, err
	}
	e := &exam{Options: opts, nc: nc, kv: x, needs: needsOf(nc, opts.Fabric, 1), report: &Report{Cluster: Cluster{Servers: []Member{}}, Fabric: Fabric{Name: opts.Fabric, Buckets: []Bucket{}}}}
	// The server reports a subject without permission separately, and never answers the request, so waiting is useless.
	// Permissions that programs do not require end nothing.
	nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if errors.Is(err, nats.ErrPermissionViolation) && e.denied != nil && !e.rights.known && !bearable(e.needs, err) {
			e.denied(err)
		}
	})
	e.server()
	e.doing("permissions")
	e.permissions(ctx)
	e.doing("jetstream")
	if e.jetStream(ctx) {
		e.doing("sync")
		e.sync(ctx)
		e.doing("bucket")
		e.buckets(ctx)
		e.doing("incarnation")
		for e.shard, e.locks = range e.all {
			e.incarnation(ctx)
		}
		e.doing("records")
		// Ages compare this host's clock with the server's. They are information only: nothing is decided by them.
		leases := e.readLeases(ctx)
		for e.shard, e.locks = range e.all {
			e.readLocks(ctx, leases)
		}
		e.deadlocks(ctx)
	}
	e.rtt(ctx)
	e.doing("writes")
	e.writes(ctx)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r := e.report
	r.OK = r.Count(Problem) == 0
	if e.Strict {
		r.OK = r.Count(OK) == len(r.Findings)
	}
	return r, nil
}

func (e *exam) doing(what string) {
	if e.Progress != nil {
		e.Progress(what)
	}
}

// measure calls once the requested number of times, or until the time is over.
func (e *exam) measure(ctx context.Context, check string, once func(ctx context.Context) error) error {
	end := time.Now().Add(cmp.Or(e.ProbeTime, probeTime))
	for n := 0; n < e.Probes && (n == 0 || time.Now().Before(end)); n++ {
		e.doing(fmt.Sprintf("%s, %d of %d", check, n+1, e.Probes))
		if err := e.step(ctx, stepTimeout, once); err != nil {
			return err
		}
	}
	return nil
}

// step makes one request. It ends in time, or when the server reports that the user has no permission for it.
func (e *exam) step(ctx context.Context, limit time.Duration, ask func(ctx context.Context) error) error {
	limited, stop := context.WithTimeout(ctx, limit)
	defer stop()
	limited, cancel := context.WithCancelCause(limited)
	defer cancel(nil)
	set := func(f func(error)) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.denied = f
	}
	set(cancel)
	defer set(nil)
	err := ask(limited)
	if cause := context.Cause(limited); err != nil && errors.Is(cause, nats.ErrPermissionViolation) {
		return cause
	}
	return err
}

// ask is step for a request with an answer. If the user is known to have no permission, it makes no request.
func ask[T any](ctx context.Context, e *exam, mayNot bool, question func(ctx context.Context) (T, error)) (answer T, err error) {
	if mayNot {
		return answer, errMayNot
	}
	err = e.step(ctx, stepTimeout, func(ctx context.Context) (err error) {
		answer, err = question(ctx)
		return err
	})
	return answer, err
}

// errMayNot is returned if the user's known permissions do not allow a request.
var errMayNot = errors.New("the user's rights do not suffice")

// notAllowed reports whether the server refused a request for its permissions, or would refuse it.
func notAllowed(err error) bool {
	return errors.Is(err, nats.ErrPermissionViolation) || errors.Is(err, errMayNot)
}

// reason returns why something was not read, and the remedy.
func reason(err error) (why, remedy string) {
	if notAllowed(err) {
		return "this user may not read it", grantIt
	}
	return err.Error(), "see the other findings, on the server and the buckets, and run doctor again"
}

// grantIt is the remedy for missing permissions.
const grantIt = "grant the user what docs/doctor.md lists under permissions, or run doctor as a user who may"

// Status is the severity of a finding.
type Status string

// The statuses.
const (
	OK      Status = "ok"
	Warning Status = "warning"
	Problem Status = "problem"
	Unknown Status = "unknown" // it could not be checked
)

// Checks returns the names of all checks, in the order of their findings.
func Checks() []string {
	return strings.Fields("server version jetstream limits permissions sync bucket configuration storage replicas peers clock incarnation " +
		"sequence keys records holders leases coalescer deadlocks rtt writes")
}

// Finding is the result of one check of one thing.
type Finding struct {
	Check   string `json:"check"`             // one of Checks
	Subject string `json:"subject,omitempty"` // what was examined: a bucket or a server
	Status  Status `json:"status"`
	Detail  string `json:"detail"`
	Remedy  string `json:"remedy,omitempty"` // what to do
}

// Report is the result of Run.
type Report struct {
	Server   Server    `json:"server"`
	Cluster  Cluster   `json:"cluster"`
	Fabric   Fabric    `json:"fabric"`
	Findings []Finding `json:"findings"`
	Latency  Latency   `json:"latency"`
	// OK reports that there is no problem; with Options.Strict, that all findings are ok.
	OK bool `json:"ok"`
}

// Server is the server of the connection.
type Server struct {
	Address string `json:"address"`
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Cluster is the cluster of the server.
type Cluster struct {
	Name    string   `json:"name"`    // "" = standalone
	Servers []Member `json:"servers"` // the visible servers
}

// Member is one server with JetStream.
type Member struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	// SyncAlways reports that every write is synced before it is acknowledged. Otherwise SyncInterval is the maximum
	// delay of the sync.
	SyncAlways   bool          `json:"sync_always"`
	SyncInterval time.Duration `json:"sync_interval_ns"` // 0 with SyncAlways
}

// Sync returns the setting as in the server's configuration: always, or an interval such as 2m0s.
func (m *Member) Sync() string {
	if m.SyncAlways {
		return "always"
	}
	return m.SyncInterval.String()
}

// Fabric is the fabric and its buckets.
type Fabric struct {
	Name    string   `json:"name"`
	Shards  int      `json:"shards"`  // 0 = unknown
	Buckets []Bucket `json:"buckets"` // existing buckets
}

// Bucket is one existing bucket.
type Bucket struct {
	Name     string `json:"name"`
	Storage  string `json:"storage"` // file or memory
	Replicas int    `json:"replicas"`
	Leader   string `json:"leader"` // "" = single server, or no leader
	FirstSeq uint64 `json:"first_seq"`
	LastSeq  uint64 `json:"last_seq"`
	Keys     int    `json:"keys"` // number of keys with a value; 0 if they could not be read
}

// Latency is what the probe measured.
type Latency struct {
	Probes  int           `json:"probes"`
	TTL     time.Duration `json:"ttl_ns"`  // TTL with which the times are compared
	RTT     *Times        `json:"rtt"`     // of the connection
	Acquire *Times        `json:"acquire"` // one CAS write; null = not measured
	Release *Times        `json:"release"` // one CAS delete; null = not measured
	// Coalesced is the time of an acquire and a release over the coalescer; null = not measured, or no coalescer.
	Coalesced *Times `json:"coalesced"`
}

// Times summarizes one kind of round trip.
type Times struct {
	Median time.Duration `json:"median_ns"`
	P99    time.Duration `json:"p99_ns"`
	Max    time.Duration `json:"max_ns"`
}

// Count returns the number of findings with this status.
func (r *Report) Count(s Status) (n int) {
	for _, f := range r.Findings {
		if f.Status == s {
			n++
		}
	}
	return n
}

func (r *Report) add(status Status, check, subject, detail, remedy string) {
	r.Findings = append(r.Findings, Finding{check, subject, status, detail, remedy})
}

func (r *Report) ok(check, subject, format string, args ...any) {
	r.add(OK, check, subject, fmt.Sprintf(format, args...), "")
}
