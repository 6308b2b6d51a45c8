package fabric

import (
	"fmt"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Mode says what else may be held beside a hold:
//
//	                        IS   IX   S    SIX  U    X
//	IntentShared            yes  yes  yes  yes  yes  -
//	IntentExclusive         yes  yes  -    -    -    -
//	Shared                  yes  -    yes  -    yes  -
//	SharedIntentExclusive   yes  -    -    -    -    -
//	Update                  yes  -    yes  -    -    -
//	Exclusive               -    -    -    -    -    -
//
// The intent modes are for a resource that contains others: whoever locks a part
// announces it on the whole first, so that a lock on the whole and locks on its
// parts keep each other out without looking at every part. They say nothing about
// the parts; those have locks of their own.
//
// [Lock.Convert] goes from any mode to any other. It never has to wait downwards:
// from X to SIX to U or IX; from U to S; from S or IX to IS; and further along
// these.
type Mode string

// The modes that Acquire grants and Convert changes to.
const (
	// IntentShared announces Shared locks on parts of this resource.
	IntentShared Mode = "IS"
	// IntentExclusive announces Exclusive locks on parts of this resource.
	IntentExclusive Mode = "IX"
	// Shared reads, beside other readers.
	Shared Mode = "S"
	// SharedIntentExclusive reads all of this resource and announces Exclusive locks on parts.
	SharedIntentExclusive Mode = "SIX"
	// Update reads and may want to write: others may read meanwhile, but nobody
	// else holds Update, so converting to Exclusive waits for readers only and
	// can't meet another holder who wants the same.
	Update Mode = "U"
	// Exclusive writes, with nobody beside it.
	Exclusive Mode = "X"
)

func (m Mode) record() (record.Mode, error) {
	r, err := record.ParseMode(string(m))
	if err != nil {
		return record.None, fmt.Errorf("%w: mode %q: use one of IS, IX, S, SIX, U, X", ErrInvalidOption, string(m))
	}
	return r, nil
}

// modeOf is the mode of an entry; "" where its kind has none.
func modeOf(m record.Mode) Mode {
	if m == record.None {
		return ""
	}
	return Mode(m.String())
}
