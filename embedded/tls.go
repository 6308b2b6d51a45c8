package embedded

import (
	"crypto/tls"
	"crypto/x509"
	"os"
)

// tlsTimeout bounds a handshake, in seconds. The server's own default of two is
// short for a host that is busy.
const tlsTimeout = 5

// tlsFiles are the files of one listener. They are read at the start and again
// by Reload.
type tlsFiles struct {
	cert, key, ca string
}

// WithTLS makes the client listener speak TLS, and only that, with this
// certificate (its chain may follow in the file) and its key, both in PEM.
// ClientURL begins with "tls://" then. Connections inside the process need none.
// Needs WithListen.
func WithTLS(certFile, keyFile string) Option {
	return func(c *config) error {
		if certFile == "" || keyFile == "" {
			return invalid("WithTLS: give two files, the certificate and its key")
		}
		c.tls.cert, c.tls.key = certFile, keyFile
		return nil
	}
}

// WithClientCA makes the client listener ask for a certificate that one of the
// authorities in caFile (PEM) has signed; without one nobody gets in. That is
// authentication of its own, and users, nkeys or a token can be asked for
// besides. Needs WithTLS.
func WithClientCA(caFile string) Option {
	return func(c *config) error {
		return set(&c.tls.ca, caFile, caFile != "", "WithClientCA: the file is empty; name one with the certificates of the authorities")
	}
}

// load reads the files. With authorities the other side needs a certificate of
// theirs, whoever dials.
func (f tlsFiles) load(option string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, invalid("%s: certificate %s and key %s: %w", option, f.cert, f.key, err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if f.ca == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(f.ca)
	if err != nil {
		return nil, invalid("%s: authorities: %w", option, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, invalid("%s: authorities: %s has no certificate in PEM", option, f.ca)
	}
	cfg.ClientCAs, cfg.RootCAs = pool, pool
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	return cfg, nil
}
