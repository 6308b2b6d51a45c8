package lease_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// OnTombstone's function is called once, before any subscriber, even if the watch
// is faster than the acknowledgement, and not for another observer's tombstone.
func TestOwnTombstonesAreTold(t *testing.T) {
	for _, lost := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newBucket()
			o := observe(t, b)
			id, buried := ghost(b, 10*sec), ghost(b, 10*sec)
			var mu sync.Mutex
			var told []string
			say := func(what string) func(string) {
				return func(id string) {
					mu.Lock()
					defer mu.Unlock()
					told = append(told, what+id)
				}
			}
			tombstone := say("tombstone ")
			o.OnTombstone(func(id string) {
				// It runs without a lock of the observer, or this call would wait for ever.
				if st, err := o.Check(t.Context(), id, 10*sec); err != nil || !st.Dead {
					t.Errorf("%s: %+v, %v", id, st, err)
				}
				tombstone(id)
			})
			if lost {
				b.hooks(func(int, write) fault { return fault{mute: true} }, nil)
			}
			o.Observe(id, 10*sec, true, say("dead "))
			time.Sleep(time.Minute)
			o.Observe(buried, 10*sec, true, say("dead "))
			i := b.info(t, id)
			b.put(buried, fmt.Appendf(nil, `{"v":1,"id":"%s","state":"dead","ttl":10000,"margin":500,"host":"gone","pid":1,"reason":"expired","by":"a:1","at":%d}`,
				buried, i.At.UnixMilli()))
			time.Sleep(time.Minute)
			mu.Lock()
			defer mu.Unlock()
			if want := []string{"tombstone " + id, "dead " + id, "dead " + buried}; !slices.Equal(told, want) {
				t.Errorf("reply lost: %v: told %q, want %q", lost, told, want)
			}
		})
	}
}
