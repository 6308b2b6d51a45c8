//go:build linux || darwin

package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// kernel is a clock of the kernel, counted from the call that made it.
type kernel struct {
	id    int32
	start int64 // nanoseconds
}

// system returns the kernel clock. If the kernel, or a sandbox around this process, does not know the id, it returns
// Go's monotonic clock. The choice is made once: the two must never be mixed.
func system(id int32) Clock {
	start, err := read(id)
	if err != nil {
		return monotonic{start: time.Now()}
	}
	return kernel{id: id, start: start}
}

// Now returns the elapsed time. A clock that could be read once can always be read. If it can't, Now returns the largest
// time, which ends every lease: the safe side for a holder.
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
