package engine

import (
	"context"
	"strconv"
	"sync"
	"testing"

	"github.com/lockfabric/lockfabric/internal/record"
)

// tardy is a Doer that reports at once that it does not use a request any more, but answers it a moment later, as an
// engine does that is closed meanwhile.
type tardy struct{ wg sync.WaitGroup }

func (d *tardy) SubmitHere(r *Request) (over bool) {
	d.wg.Go(func() {
		n, _ := strconv.ParseUint(r.Key, 10, 64)
		r.Done(Outcome{Revision: n}, nil)
	})
	return true
}

func (d *tardy) Submit(...*Request) {}

func (d *tardy) Withdraw(*Request, error) {}

// A request is reused for another call only after its Done was called.
func TestDoUsesNoRequestAgainBeforeItsAnswer(t *testing.T) {
	d := new(tardy)
	defer d.wg.Wait()
	for n := range uint64(1000) {
		out, err := Do(context.Background(), d, strconv.FormatUint(n, 10), record.Op{}, Options{})
		if err != nil || out.Revision != n {
			t.Fatalf("call %d: revision %d, %v", n, out.Revision, err)
		}
	}
}
