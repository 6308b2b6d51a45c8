package fabric

import (
	"fmt"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Mode says what else may be held beside a hold.
type Mode string

// The modes that Acquire grants.
const (
	Exclusive Mode = "X" // nobody else
	Shared    Mode = "S" // other shared holders
)

func (m Mode) record() (record.Mode, error) {
	switch m {
	case Exclusive:
		return record.X, nil
	case Shared:
		return record.S, nil
	}
	return record.None, fmt.Errorf("%w: mode %q: use Exclusive or Shared", ErrInvalidOption, string(m))
}
