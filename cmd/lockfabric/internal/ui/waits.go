package ui

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

const (
	// maxUnits is how many units of work are shown.
	maxUnits = 200
	// waitsAge is how old what is told about waits may be: all pages share one look.
	waitsAge = 500 * time.Millisecond
)

// waiting is the last look at who waits for whom.
type waiting struct {
	mu sync.Mutex
	at time.Time
	is graph
}

// graph is who waits for whom, and who serves as the coalescer.
type graph struct {
	fabric.Waits
	All       int           `json:"all"`                 // of which units has the first ones
	Coalescer *fabric.Lease `json:"coalescer,omitempty"` // who serves
	StandBy   int           `json:"stand_by"`            // how many would follow it
}

func (s *server) waits(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), requestTime)
	defer cancel()
	s.waiting.mu.Lock()
	defer s.waiting.mu.Unlock()
	if time.Since(s.waiting.at) >= waitsAge {
		is, err := s.lookAtWaits(ctx)
		if err != nil {
			refuse(w, statusOf(err), err.Error())
			return
		}
		s.waiting.is, s.waiting.at = is, time.Now()
	}
	answer(w, http.StatusOK, s.waiting.is)
}

func (s *server) lookAtWaits(ctx context.Context) (g graph, err error) {
	if g.Waits, err = s.locks.Waits(ctx); err != nil {
		return g, err
	}
	g.All = len(g.Units)
	g.Units = g.Units[:min(g.All, maxUnits)]
	info, err := s.locks.Coalescer(ctx)
	if len(info.Holders) > 0 {
		g.Coalescer, g.StandBy = &info.Holders[0].Lease, len(info.Waiters)
	}
	return g, err
}
