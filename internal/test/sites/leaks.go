package sites

import (
	"time"

	"go.uber.org/goleak"
)

// leakPatience is how long goroutines have to end. goleak alone gives them half a second, which a busy machine can use up.
const leakPatience = 30 * time.Second

// FindLeaks returns an error if goroutines are left that do not end.
func FindLeaks() (err error) {
	for end := time.Now().Add(leakPatience); time.Now().Before(end); {
		if err = goleak.Find(); err == nil {
			return nil
		}
	}
	return err
}
