package fabric_test

import (
	"errors"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

// Both buckets were deleted: a release says so, and not that the manager is closed.
func TestReleaseAfterTheBucketsWereDeleted(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		own := s.fabric(t)
		m := s.manager(t, fabric.WithFabric(own))
		const holds = 8
		locks := make([]*fabric.Lock, holds)
		for i := range locks {
			locks[i] = acquire(t, m, s.key(t))
		}
		js := s.jetStream(t)
		results := make(chan error, holds)
		for i, bucket := range []string{"-locks", "-leases"} {
			if err := js.DeleteStream(waitContext(t), "KV_"+own+bucket); err != nil {
				t.Fatal(err)
			}
			for _, l := range locks[i*holds/2 : (i+1)*holds/2] {
				go func() { results <- l.Release(t.Context()) }()
			}
		}
		for range holds {
			if err := receive(t, results); !errors.Is(err, fabric.ErrLost) || !errors.Is(err, fabric.ErrBucketGone) || errors.Is(err, fabric.ErrClosed) {
				t.Errorf("release: %v", err)
			}
		}
	})
}
