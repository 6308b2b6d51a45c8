package jskv

import (
	"errors"
	"time"
)

const (
	sampled   = 256               // single writes that are measured at a time
	tried     = 5                 // batches that are measured after them, from the first one's answer
	measured  = 30 * time.Second  // for how long the outcome counts
	manyAlone = 8 * leastTogether // writes in a row that found no batch: there is no crowd any more
)

// gauge decides by measuring whether a bucket's writes go in batches, since that depends on what a client can't
// see: whether the server syncs each write. Single writes, which is how it begins, are left only while enough of
// them are under way at a time.
//
//	singles --sampled answers in a crowd--> batches --slower, few writes, or no answer--> singles
type gauge struct {
	on bool // batches, not singles

	last    time.Time     // answer in a crowd, or to a batch; zero: there is none now
	answers int           // in a crowd, in took
	took    time.Duration // for them
	single  time.Duration // what one took in the end
	lone    int           // writes that went alone since the last batch
	left    int           // batches that are still to be measured
	members int           // of those that were
	spent   time.Duration // from one's answer to the next one's
	lately  time.Duration // by the last batch
	until   time.Time     // when it is measured again
}

// stop goes back to single writes, which are measured anew.
func (g *gauge) stop(d time.Duration) {
	g.on, g.answers, g.took, g.last, g.until = false, 0, 0, time.Time{}, time.Now().Add(d)
}

// wentAlone counts writes that did not find enough others for a batch.
func (g *gauge) wentAlone(n int) {
	if g.lone += n; g.on && g.lone > manyAlone {
		g.stop(time.Second)
	}
}

// aloneAnswered takes in that a single write is over, and whether there was a crowd.
func (g *gauge) aloneAnswered(crowd bool) {
	if !crowd {
		g.last = time.Time{}
		return
	}
	now := time.Now()
	if !g.last.IsZero() {
		g.took += now.Sub(g.last)
		g.answers++
	}
	g.last = now
	if g.answers < sampled {
		return
	}
	if now.After(g.until) {
		g.single = g.took / sampled
		g.on, g.lone, g.left, g.members, g.spent, g.lately, g.until = true, 0, tried, 0, 0, 4*g.single, now.Add(measured)
		g.last = time.Time{}
	}
	g.answers, g.took = 0, 0
}

// togetherAnswered takes in that a batch of n is over.
func (g *gauge) togetherAnswered(n int, took time.Duration, err error) {
	g.lately = took
	switch {
	case !g.on:
	case errors.Is(err, ErrBusy):
		g.wentAlone(2 * leastTogether)
	case err != nil:
		g.stop(measured)
	default:
		now := time.Now()
		if !g.last.IsZero() {
			g.members, g.spent = g.members+n, g.spent+now.Sub(g.last)
		}
		g.lone, g.last = 0, now
		g.left--
		if g.left == 0 && 5*g.spent > 4*g.single*time.Duration(g.members) {
			g.stop(measured)
		} else if g.left < 0 && now.After(g.until) {
			g.stop(0)
		}
	}
}
