package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// The locks bucket is deleted while goroutines contend and others hold in silence.
// No other process makes it again: the managers have to notice by themselves, all of
// them, whatever else they are looking at in that moment.
func TestGone_DeletedUnderContention(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		for _, managers := range []int{1, 3} {
			t.Run(fmt.Sprint(managers, " managers"), func(t *testing.T) {
				t.Parallel()
				deleteUnderContention(t, s, managers)
			})
		}
	})
}

func deleteUnderContention(t *testing.T, s *site, managers int) {
	own := s.fabric(t)
	name := fabric.WithFabric(own)
	var all []*fabric.Manager
	var quiet []*fabric.Lock
	for i := range managers {
		m := s.manager(t, name, fabric.WithTTL(5*time.Second))
		all = append(all, m)
		quiet = append(quiet, acquire(t, m, fmt.Sprint("quiet", i)))
	}
	ctx, stop := context.WithCancel(context.Background()) // each step has its own patience
	var users sync.WaitGroup
	defer users.Wait()
	defer stop()
	var rounds [3]atomic.Int64 // of each manager
	for i, m := range all {
		for j := range 6 {
			users.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					l, err := m.Acquire(ctx, fmt.Sprint("busy", (j+n)%2))
					if err != nil {
						if ctx.Err() == nil {
							t.Errorf("acquire: %v", err)
						}
						return
					}
					rounds[i].Add(1)
					_ = l.Release(ctx)
				}
			})
		}
	}
	progress := func(what string) {
		for i := range all {
			was := rounds[i].Load()
			eventually(t, fmt.Sprintf("%s: grants of manager %d", what, i), func() bool { return rounds[i].Load() > was+20 })
		}
	}
	progress("before")
	time.Sleep(300 * time.Millisecond)
	if err := s.jetStream(t).DeleteStream(waitContext(t), "KV_"+own+"-locks"); err != nil {
		t.Fatal(err)
	}
	for _, l := range quiet {
		reason := waitLost(t, l)
		// Another manager may have made the bucket again before this one looked.
		if !errors.Is(reason, fabric.ErrBucketGone) && (managers == 1 || !errors.Is(reason, fabric.ErrRemoved)) {
			t.Errorf("lost because of %v", reason)
		}
	}
	progress("after")
}
