package doctor

import (
	"fmt"
	"time"
)

// Status is the weight of a finding.
type Status string

// The statuses.
const (
	OK      Status = "ok"
	Warning Status = "warning"
	Problem Status = "problem"
	Unknown Status = "unknown" // it could not be found out
)

// The checks, in the order of their findings.
const (
	checkServer        = "server"
	checkVersion       = "version"
	checkJetStream     = "jetstream"
	checkLimits        = "limits"
	checkPermissions   = "permissions"
	checkSync          = "sync"
	checkBucket        = "bucket"
	checkConfiguration = "configuration"
	checkStorage       = "storage"
	checkReplicas      = "replicas"
	checkPeers         = "peers"
	checkClock         = "clock"
	checkIncarnation   = "incarnation"
	checkSequence      = "sequence"
	checkKeys          = "keys"
	checkRecords       = "records"
	checkHolders       = "holders"
	checkLeases        = "leases"
	checkCoalescer     = "coalescer"
	checkDeadlocks     = "deadlocks"
	checkRTT           = "rtt"
	checkWrites        = "writes"
)

// Checks returns the names of all checks.
func Checks() []string {
	return []string{
		checkServer, checkVersion, checkJetStream, checkLimits, checkPermissions, checkSync,
		checkBucket, checkConfiguration, checkStorage, checkReplicas, checkPeers, checkClock, checkIncarnation, checkSequence,
		checkKeys, checkRecords, checkHolders, checkLeases, checkCoalescer, checkDeadlocks, checkRTT, checkWrites,
	}
}

// Finding is the result of one check of one thing.
type Finding struct {
	Check   string `json:"check"`             // one of Checks
	Subject string `json:"subject,omitempty"` // what was looked at: a bucket or a server
	Status  Status `json:"status"`
	Detail  string `json:"detail"`
	Remedy  string `json:"remedy,omitempty"` // what to do
}

// Report is all that was found.
type Report struct {
	Server   Server    `json:"server"`
	Cluster  Cluster   `json:"cluster"`
	Fabric   Fabric    `json:"fabric"`
	Findings []Finding `json:"findings"`
	Latency  Latency   `json:"latency"`
	// OK says that there is no problem; with strict rules, only findings that are ok.
	OK bool `json:"ok"`
}

// Server is the one that the connection goes to.
type Server struct {
	Address string `json:"address"`
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Cluster is that of the server.
type Cluster struct {
	Name    string   `json:"name"`    // "" = the server stands alone
	Servers []Member `json:"servers"` // as far as they can be seen
}

// Member is one server with JetStream.
type Member struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	// SyncAlways says that every write is on disk before it is acknowledged, else
	// SyncInterval is how much later it may be.
	SyncAlways   bool          `json:"sync_always"`
	SyncInterval time.Duration `json:"sync_interval_ns"` // 0 with SyncAlways
}

// Sync tells it as the server's configuration does: always, or an interval such as 2m0s.
func (m *Member) Sync() string {
	if m.SyncAlways {
		return "always"
	}
	return m.SyncInterval.String()
}

// Fabric is the fabric and its buckets.
type Fabric struct {
	Name    string   `json:"name"`
	Buckets []Bucket `json:"buckets"` // those that exist
}

// Bucket is one bucket that exists.
type Bucket struct {
	Name     string `json:"name"`
	Storage  string `json:"storage"` // file or memory
	Replicas int    `json:"replicas"`
	Leader   string `json:"leader"` // "" = single server, or none
	FirstSeq uint64 `json:"first_seq"`
	LastSeq  uint64 `json:"last_seq"`
	Keys     int    `json:"keys"` // with a value; 0 when they could not be read
}

// Latency is what the probe measured.
type Latency struct {
	Probes  int           `json:"probes"`
	TTL     time.Duration `json:"ttl_ns"`  // to which the times are held
	RTT     *Times        `json:"rtt"`     // connection
	Acquire *Times        `json:"acquire"` // one CAS write; null = not measured
	Release *Times        `json:"release"` // one CAS delete; null = not measured
}

// Times sums up one kind of round trip.
type Times struct {
	Median time.Duration `json:"median_ns"`
	P99    time.Duration `json:"p99_ns"`
	Max    time.Duration `json:"max_ns"`
}

// Count returns how many findings have the status.
func (r *Report) Count(s Status) (n int) {
	for _, f := range r.Findings {
		if f.Status == s {
			n++
		}
	}
	return n
}

func (r *Report) add(f Finding) { r.Findings = append(r.Findings, f) }

func (r *Report) ok(check, subject, format string, args ...any) {
	r.add(Finding{Check: check, Subject: subject, Status: OK, Detail: fmt.Sprintf(format, args...)})
}

func (r *Report) warn(check, subject, detail, remedy string) {
	r.add(Finding{check, subject, Warning, detail, remedy})
}

func (r *Report) problem(check, subject, detail, remedy string) {
	r.add(Finding{check, subject, Problem, detail, remedy})
}

func (r *Report) unknown(check, subject, detail, remedy string) {
	r.add(Finding{check, subject, Unknown, detail, remedy})
}
