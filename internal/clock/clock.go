package clock

import "time"

// Clock returns the elapsed time since an arbitrary origin. It never goes backwards.
// Implementations are safe for concurrent use.
type Clock interface {
	Now() time.Duration
}

// Observer returns the clock for observing other processes' leases: Go's
// monotonic time since the call. It may stop while the host is suspended.
func Observer() Clock { return monotonic{start: time.Now()} }

// monotonic is Go's monotonic time.
type monotonic struct{ start time.Time }

func (m monotonic) Now() time.Duration { return time.Since(m.start) }
