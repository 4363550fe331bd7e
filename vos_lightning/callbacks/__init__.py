"""Lightning callbacks: prediction files, pictures of the evaluation, throughput."""
