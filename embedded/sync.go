package embedded

import (
	"time"
)

// SyncMode says when acknowledged writes reach the disk. Make one with
// SyncAlways or SyncInterval.
type SyncMode time.Duration

// SyncAlways syncs every write to disk before it is acknowledged. It is the
// default of Start: a lock that was granted stays granted through a power
// failure. A write costs what the disk's sync costs.
const SyncAlways SyncMode = 0

// minSyncInterval keeps the server's background sync from spinning.
const minSyncInterval = time.Millisecond

// SyncInterval syncs in the background about every d, at least one
// millisecond, and acknowledges writes before. It is faster, many times so on
// slow disks, and the price is that a power failure or a crash of the operating
// system may lose acknowledged writes of the last d: a lock can then be held
// twice, and fencing tokens may repeat. The end of the process alone loses
// nothing.
func SyncInterval(d time.Duration) SyncMode {
	if d < minSyncInterval {
		return SyncMode(-1) // refused by the option that gets it
	}
	return SyncMode(d)
}

// String returns "always" or "every <d>".
func (m SyncMode) String() string {
	switch {
	case m == SyncAlways:
		return "always"
	case m < 0:
		return "invalid"
	default:
		return "every " + time.Duration(m).String()
	}
}
