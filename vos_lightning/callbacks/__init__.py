"""Lightning callbacks: prediction files, pictures of the validation, training speed."""
