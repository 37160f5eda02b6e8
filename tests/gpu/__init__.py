"""What must hold on a CUDA device, under `make test-gpu`; each test runs in a tiny form on the CPU, too."""
