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
	stop, stopped, insisted := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		var first time.Time
		for {
			select {
			case sig := <-sigs:
				if first.IsZero() {
					first = time.Now()
					cancel(&exitError{
						code:  exitSignal + signalNumber(sig),
						cause: fmt.Errorf("ended by signal %q while waiting: nothing is held", sig),
					})
				} else if time.Since(first) > insistent {
					close(insisted)
					return
				}
			case <-stop:
				return
			}
		}
	}()
	return ctx, insisted, sync.OnceFunc(func() {
		close(stop)
		<-stopped
	})
}

// impatiently calls fn, which ends something and may have to wait for a server. The
// error is errGivenUp when a signal insists on ending at once; fn goes on then.
func impatiently(sigs <-chan os.Signal, fn func() error) error {
	again, stop := make(chan struct{}), make(chan struct{})
	defer close(stop)
	begun := time.Now()
	go func() {
		for {
			select {
			case sig := <-sigs:
				if slices.Contains(endings, sig) && time.Since(begun) > insistent {
					close(again)
					return
				}
			case <-stop:
				return
			}
		}
	}()
	return unless(again, fn)
}

// unless calls fn and returns its error, or errGivenUp without waiting for it.
func unless(again <-chan struct{}, fn func() error) error {
	result := make(chan error, 1)
	go func() { result <- fn() }()
	select {
	case err := <-result:
		return err
	case <-again:
		return errGivenUp
	}
}
