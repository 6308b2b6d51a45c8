package chaos

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// Tolerance says which errors a caller may see in addition to those that it causes
// by trying, by a short wait or by cancelling. The zero value allows none.
type Tolerance struct {
	// Lost are the reasons for which a hold may be lost.
	Lost []error
	// Unconfirmed allows a release not to be confirmed in time.
	Unconfirmed bool
	// Anything allows every error, for runs that are broken on purpose.
	Anything bool
}

// tolerates reports whether an error of a hold or its release is allowed.
func (t Tolerance) tolerates(err error) bool {
	switch {
	case err == nil || t.Anything:
		return true
	case errors.Is(err, fabric.ErrUnconfirmed):
		return t.Unconfirmed
	}
	for _, reason := range t.Lost {
		if errors.Is(err, fabric.ErrLost) && errors.Is(err, reason) {
			return true
		}
	}
	return false
}

// Report is the result of a run.
type Report struct {
	OracleStats
	Operations  uint64 // acquires and tries
	Granted     uint64
	Refused     uint64 // tries that met a holder
	TimedOut    uint64
	Cancelled   uint64
	Released    uint64
	Lost        uint64
	Unconfirmed uint64        // releases
	Longest     time.Duration // of an acquire
	Latest      time.Duration // of a timed or cancelled acquire, after its context's end
	ByManager   []uint64      // grants
}

// String returns the figures in one line, without the violations.
func (r Report) String() string {
	return fmt.Sprintf("operations %d, grants %d (X %d, S %d, beside another %d), handoffs %d, refused %d, timed out %d, cancelled %d, "+
		"released %d, lost %d, unconfirmed %d, stale %d, longest acquire %v, latest end of a given up one %v",
		r.Operations, r.Granted, r.Exclusive, r.Shared, r.Beside, r.Handoffs, r.Refused, r.TimedOut, r.Cancelled,
		r.Released, r.Lost, r.Unconfirmed, r.Stale, r.Longest.Round(time.Millisecond), r.Latest.Round(time.Millisecond))
}

// Err returns all violations as one error, or nil.
func (r Report) Err() error {
	if len(r.Violations) == 0 {
		return nil
	}
	return fmt.Errorf("chaos: %d violations:\n%s", len(r.Violations), strings.Join(r.Violations, "\n"))
}

// tally counts while the run goes on.
type tally struct {
	operations, granted, refused, timedOut, cancelled, released, lost, unconfirmed atomic.Uint64
	longest, latest                                                                atomic.Int64
	byManager                                                                      []atomic.Uint64

	mu         sync.Mutex
	violations []string
}

func (t *tally) violated(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.violations) < maxViolations {
		t.violations = append(t.violations, fmt.Sprintf(format, args...))
	}
}

func (t *tally) report(o *Oracle) Report {
	r := Report{
		OracleStats: o.Stats(),
		Operations:  t.operations.Load(), Granted: t.granted.Load(), Refused: t.refused.Load(), TimedOut: t.timedOut.Load(),
		Cancelled: t.cancelled.Load(), Released: t.released.Load(), Lost: t.lost.Load(), Unconfirmed: t.unconfirmed.Load(),
		Longest: time.Duration(t.longest.Load()), Latest: time.Duration(t.latest.Load()),
	}
	for i := range t.byManager {
		r.ByManager = append(r.ByManager, t.byManager[i].Load())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r.Violations = append(r.Violations, t.violations...)
	return r
}

func atMost(v *atomic.Int64, d time.Duration) {
	for {
		old := v.Load()
		if int64(d) <= old || v.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}
