package lease

import (
	"container/heap"
	"time"
)

// agenda holds the leases that are to be looked at, by when. There may be ten
// thousand of them, each renewed every few seconds, so a renewal does not move
// its lease: the loop does, when it finds that it is not due yet.
type agenda []*sight

// enter has the lease looked at no later than at.
func (a *agenda) enter(s *sight, at time.Duration) {
	switch {
	case s.place == 0:
		s.at = at
		heap.Push(a, s)
	case at < s.at:
		s.at = at
		heap.Fix(a, s.place-1)
	}
}

// strike takes the lease off.
func (a *agenda) strike(s *sight) {
	if s.place > 0 {
		heap.Remove(a, s.place-1)
	}
}

// next returns when the loop has to look again, never if there is nothing.
func (a agenda) next() time.Duration {
	if len(a) == 0 {
		return never
	}
	return a[0].at
}

// pop takes the next lease off.
func (a *agenda) pop() *sight { return heap.Pop(a).(*sight) }

// The methods of heap.Interface.

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].at < a[j].at }

func (a agenda) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i+1, j+1
}

func (a *agenda) Push(x any) {
	s := x.(*sight)
	*a = append(*a, s)
	s.place = len(*a)
}

func (a *agenda) Pop() any {
	last := len(*a) - 1
	s := (*a)[last]
	(*a)[last] = nil
	*a = (*a)[:last]
	s.place = 0
	return s
}
