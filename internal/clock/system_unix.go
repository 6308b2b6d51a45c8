//go:build linux || darwin

package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// kernel is one of the kernel's clocks, counted from the call that made it.
type kernel struct {
	id    int32
	start int64 // nanoseconds
}

// system returns the kernel clock, or Go's monotonic one where the kernel, or a sandbox around this process, does not
// know the id. The choice is made once: the two must never be mixed.
func system(id int32) Clock {
	start, err := read(id)
	if err != nil {
		return monotonic{start: time.Now()}
	}
	return kernel{id: id, start: start}
}

// Now returns the elapsed time. Reading a clock that could be read before does not fail; should it, the answer is the
// end of time, which ends every lease: the safe side for a holder.
func (k kernel) Now() time.Duration {
	now, err := read(k.id)
	if err != nil {
		return 1<<63 - 1
	}
	return time.Duration(now - k.start)
}

func read(id int32) (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0, err
	}
	return ts.Nano(), nil
}
