package chaos_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

// converterEnv makes the test binary a process that takes locks in all modes. Its
// value is the URL of the server.
const converterEnv = "LOCKFABRIC_TEST_CONVERTER"

// converter holds at most one lock. It reads one command a line from its input:
//
//	try LOCK MODE   acquires, or prints "held MODE" with the blocking holder's mode
//	convert MODE    converts in the background, and prints the outcome
//	cancel          ends the context of the conversion
//	release         releases
//
// Every command but a conversion is answered before the next one.
func converter() int {
	ctx := context.Background()
	m, err := fabric.Connect(ctx, os.Getenv(converterEnv), patiently)
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println("ready")
	var lock *fabric.Lock
	cancel := context.CancelFunc(func() {})
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		command, rest, _ := strings.Cut(in.Text(), " ")
		switch command {
		case "try":
			name, mode, _ := strings.Cut(rest, " ")
			l, err := m.TryAcquire(ctx, name, fabric.WithMode(fabric.Mode(mode)))
			var held *fabric.HeldError
			switch {
			case err == nil:
				lock = l
				fmt.Println("granted", l.Token())
			case errors.As(err, &held):
				fmt.Println("held", held.Mode)
			default:
				fmt.Println("error", err)
			}
		case "convert":
			var cctx context.Context
			cctx, cancel = context.WithCancel(ctx)
			go func(l *fabric.Lock, mode fabric.Mode) {
				err := l.Convert(cctx, mode)
				fmt.Println("converted", conversion(err), l.Mode(), l.Token())
			}(lock, fabric.Mode(rest))
		case "cancel":
			cancel()
		case "release":
			fmt.Println("released", outcome(lock.Release(ctx)))
		}
	}
	cancel()
	if err := m.Close(); err != nil {
		return 1
	}
	return 0
}

func conversion(err error) string {
	switch {
	case err == nil:
		return "granted"
	case errors.Is(err, fabric.ErrConvertDeadlock):
		return "deadlock"
	case errors.Is(err, context.Canceled):
		return "cancelled"
	}
	return "error: " + err.Error()
}

// launchConverters starts n converters.
func launchConverters(t *testing.T, url string, n int) []*process {
	t.Helper()
	all := make([]*process, n)
	for i := range all {
		all[i] = launchSelf(t, converterEnv+"="+url)
	}
	for _, p := range all {
		p.expect("ready")
	}
	return all
}

// ask sends a command and waits for its answer.
func (p *process) ask(command string) string {
	p.t.Helper()
	p.say(command)
	return p.expect("")
}
