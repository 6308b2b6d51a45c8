package ui

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
)

// maxParties is how many of those who hold, or wait in one queue, are shown.
const maxParties = 200

// details is one name.
type details struct {
	fabric.Info
	Now     time.Time `json:"now"`
	State   string    `json:"state"`
	Held    int       `json:"held"`    // of which holders has the first ones
	Waiting int       `json:"waiting"` // likewise
}

func (s *server) key(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), requestTime)
	defer cancel()
	info, err := s.locks.Read(ctx, r.URL.Query().Get("name"))
	if err != nil {
		refuse(w, statusOf(err), err.Error())
		return
	}
	d := details{Info: info, Now: time.Now(), State: s.cfg.State(info), Held: len(info.Holders), Waiting: len(info.Waiters)}
	d.Holders, d.Waiters = info.Holders[:min(d.Held, maxParties)], info.Waiters[:min(d.Waiting, maxParties)]
	for i := range d.Conditions {
		c := &d.Conditions[i]
		c.Waiters = c.Waiters[:min(len(c.Waiters), maxParties)]
	}
	if err := s.locks.Identify(ctx, []fabric.Info{d.Info}); err != nil {
		refuse(w, statusOf(err), err.Error())
		return
	}
	answer(w, http.StatusOK, d)
}

// release takes a lock from the holders that are named, and from nobody else.
func (s *server) release(w http.ResponseWriter, r *http.Request) {
	if !s.cfg.AllowRelease {
		refuse(w, http.StatusForbidden, "not allowed: start the page with --allow-release")
		return
	}
	var req struct {
		Key     string   `json:"key"`
		Holders []string `json:"holders"`
		Now     bool     `json:"now"`
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		refuse(w, http.StatusBadRequest, "not readable: "+err.Error())
		return
	}
	// No id at all, or an empty one, would stand for all who hold it by then.
	if len(req.Holders) == 0 || len(req.Holders) > maxParties || slices.Contains(req.Holders, "") {
		refuse(w, http.StatusBadRequest, "name the holders to take it from")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTime)
	defer cancel()
	released := 0
	for _, id := range req.Holders {
		opts := []fabric.ForceOption{fabric.ForceHolder(id)}
		if req.Now {
			opts = append(opts, fabric.ForceNow())
		}
		n, err := s.locks.ForceRelease(ctx, req.Key, opts...)
		released += n
		if err != nil {
			refuse(w, statusOf(err), err.Error())
			return
		}
	}
	answer(w, http.StatusOK, struct {
		Released int `json:"released"`
	}{released})
}

func statusOf(err error) int {
	for _, k := range []struct {
		status int
		is     []error
	}{
		{http.StatusBadRequest, []error{fabric.ErrInvalidName, fabric.ErrInvalidOption}},
		{http.StatusForbidden, []error{nats.ErrPermissionViolation, nats.ErrAuthorization}},
		{http.StatusConflict, []error{fabric.ErrKindMismatch, fabric.ErrMalformedRecord, fabric.ErrNewerSchema}},
		{http.StatusServiceUnavailable, []error{fabric.ErrUnavailable, fabric.ErrClosed, context.DeadlineExceeded, context.Canceled}},
	} {
		for _, target := range k.is {
			if errors.Is(err, target) {
				return k.status
			}
		}
	}
	return http.StatusInternalServerError
}
