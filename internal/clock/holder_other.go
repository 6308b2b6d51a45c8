//go:build !linux && !darwin

package clock

import "time"

// Holder returns the clock for one's own lease: Go's monotonic time since the call. For this system the Go
// packages in use offer nothing better. On some systems it stops while the host is suspended.
func Holder() Clock { return monotonic{start: time.Now()} }
