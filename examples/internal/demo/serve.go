package demo

import (
	"context"

	"github.com/lockfabric/lockfabric/embedded"
)

// Serve returns the URL of the given server. If the URL is empty, it starts an embedded server that other processes of
// this host can use. The returned function stops the embedded server.
func Serve(ctx context.Context, server string) (url string, stop func(), err error) {
	if server != "" {
		return server, func() {}, nil
	}
	srv, err := embedded.Start(ctx, embedded.WithTempStore(), embedded.WithListen("127.0.0.1:0"))
	if err != nil {
		return "", nil, err
	}
	return srv.ClientURL(), func() { _ = srv.Shutdown(context.WithoutCancel(ctx)) }, nil
}
