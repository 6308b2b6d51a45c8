package ui

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// All pages share one look, a crowd is cut, and who serves as the coalescer is told.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLocks{}
		h := handler(f, Config{})
		expect(t, "without a session", do(h, request("GET", "/api/waits", "")), http.StatusUnauthorized)
		for i := range maxUnits + 7 {
			f.waits.Units = append(f.waits.Units, fabric.WaitingUnit{Unit: fmt.Sprint(i)})
		}
		f.waits.Deadlocks = [][]fabric.DeadlockEdge{{{Owner: "a"}}}
		f.coalescer = fabric.Info{Holders: []fabric.Party{{Lease: fabric.Lease{Host: "h"}}}, Waiters: make([]fabric.Party, 2)}
		var g graph
		for range 3 {
			resp := do(h, loggedIn(t, h, "GET", "/api/waits", ""))
			if err := json.NewDecoder(resp.Body).Decode(&g); err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%s: %v", resp.Status, err)
			}
		}
		if len(g.Units) != maxUnits || g.All != maxUnits+7 || len(g.Deadlocks) != 1 || g.Coalescer == nil || g.Coalescer.Host != "h" || g.StandBy != 2 {
			t.Errorf("%d units of %d, %v, coalescer %v and %d", len(g.Units), g.All, g.Deadlocks, g.Coalescer, g.StandBy)
		}
		if f.looks != 1 {
			t.Errorf("%d looks at once", f.looks)
		}
		time.Sleep(waitsAge)
		f.fail(fabric.ErrUnavailable)
		expect(t, "no answer", do(h, loggedIn(t, h, "GET", "/api/waits", "")), http.StatusServiceUnavailable)
		if f.looks != 2 {
			t.Errorf("%d looks", f.looks)
		}
	})
}
