package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"
)

// insistent is how long after it has begun to end a run takes another signal for
// impatience. One that comes sooner is the same once more: timeout(1) and systemd
// send it to run and to all that it has started, which run passes on.
const insistent = 2 * time.Second

// errGivenUp says that a signal has ended the wait for a server that does not
// answer.
var errGivenUp = errors.New("given up")

// catch sends signals to c, but not those that are ignored: to catch them would undo
// that, for the command too.
func catch(c chan<- os.Signal, sigs []os.Signal) {
	for _, sig := range sigs { // to none signal.Notify would give all
		if !signal.Ignored(sig) {
			signal.Notify(c, sig)
		}
	}
}

// interruptible returns a context that a signal ends which asks to end, a channel
// that is closed when another one insists, and a function that stops looking.
// Signals after that stay in the channel.
func interruptible(ctx context.Context, sigs <-chan os.Signal) (_ context.Context, again <-chan struct{}, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	insisted := make(chan struct{})
	var first time.Time
	return ctx, insisted, listen(sigs, func(sig os.Signal) (enough bool) {
		if first.IsZero() {
			first = time.Now()
			cancel(&exitError{
				code:  exitSignal + signalNumber(sig),
				cause: fmt.Errorf("ended by signal %q while waiting: nothing is held", sig),
			})
		} else if enough = time.Since(first) > insistent; enough {
			close(insisted)
		}
		return enough
	})
}

// impatiently calls fn, which ends something and may have to wait for a server. The
// error is errGivenUp when a signal insists on ending at once; fn goes on then.
func impatiently(sigs <-chan os.Signal, fn func() error) error {
	again, begun := make(chan struct{}), time.Now()
	defer listen(sigs, func(sig os.Signal) (enough bool) {
		if enough = slices.Contains(endings, sig) && time.Since(begun) > insistent; enough {
			close(again)
		}
		return enough
	})()
	return unless(again, fn)
}

// listen calls heard for each signal until that has heard enough, or until stop.
func listen(sigs <-chan os.Signal, heard func(os.Signal) (enough bool)) (stop func()) {
	stopping, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case sig := <-sigs:
				if heard(sig) {
					return
				}
			case <-stopping:
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(stopping)
		<-stopped
	})
}

// unless calls fn and returns its error, or errGivenUp without waiting for it.
func unless(enough <-chan struct{}, fn func() error) error {
	result := make(chan error, 1)
	go func() { result <- fn() }()
	select {
	case err := <-result:
		return err
	case <-enough:
		return errGivenUp
	}
}
